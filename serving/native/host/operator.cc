#include "operator.h"

namespace jaxrank::host {

namespace {

const std::map<std::string_view, MakeKernel>& table() {
  static const std::map<std::string_view, MakeKernel> operators = [] {
    std::map<std::string_view, MakeKernel> all;
    for (const auto& family :
         {array_operators(), layout_operators(), cast_operators(), comparison_operators(), arithmetic_operators(),
          function_operators(), reduction_operators(), histogram_operators(), gather_operators(), scatter_operators(),
          search_operators(), segment_operators(), sparse_operators(), sparse_arithmetic_operators(), ragged_operators(),
          cross_operators(), string_operators(), string_list_operators(), base64_operators(), number_operators(),
          example_operators(), lookup_operators(), bag_operators(), unicode_operators(), regex_operators()}) {
      all.insert(family.begin(), family.end());
    }
    return all;
  }();
  return operators;
}

template <typename T>
const T& value_as(const Attribute& attribute, const char* kind) {
  const T* found = std::get_if<T>(&attribute.value);
  if (found == nullptr) refuse<Unsupported>("an attribute that is not ", kind);
  return *found;
}

}  // namespace

MakeKernel find_operator(std::string_view name) {
  const auto found = table().find(name);
  return found == table().end() ? nullptr : found->second;
}

std::vector<std::string> operator_names() {
  std::vector<std::string> names;
  for (const auto& [name, make] : table()) names.emplace_back(name);
  return names;
}

int64_t Attribute::integer() const {
  if (const bool* flag = std::get_if<bool>(&value)) return *flag;
  return value_as<int64_t>(*this, "an integer");
}

double Attribute::number() const {
  if (const double* number = std::get_if<double>(&value)) return *number;
  return static_cast<double>(integer());
}

const std::string& Attribute::text() const { return value_as<std::string>(*this, "a text"); }

const Attribute::List& Attribute::list() const { return value_as<List>(*this, "a list"); }

std::vector<int64_t> Attribute::integers() const {
  std::vector<int64_t> found;
  for (const Attribute& item : list()) found.push_back(item.integer());
  return found;
}

std::vector<std::string> Attribute::texts() const {
  std::vector<std::string> found;
  for (const Attribute& item : list()) found.push_back(item.text());
  return found;
}

const Attribute& Attributes::operator[](std::string_view name) const {
  const auto found = values_.find(name);
  if (found == values_.end()) refuse<Unsupported>("its attribute '", name, "' is missing");
  return found->second;
}

Type Attributes::type(std::string_view name) const {
  const std::optional<Type> found = type_named(text(name));
  if (!found) refuse<Unsupported>("its dtype ", text(name), " is not supported");
  return *found;
}

const TableSlot& Resources::table(const std::string& name) const {
  const auto found = tables.find(name);
  if (found == tables.end()) refuse<Unsupported>("the table '", name, "' cannot be read natively");
  return found->second;
}

std::shared_ptr<const Vocabulary> Resources::vocabulary(const std::string& name) const {
  const auto found = vocabularies.find(name);
  if (found == vocabularies.end()) refuse<Unsupported>("the vocabulary '", name, "' cannot be read natively");
  return found->second;
}

}  // namespace jaxrank::host
