#include "tensor.h"

#include <iomanip>

namespace jaxrank::host {

namespace {

struct TypeInfo {
  const char* name;
  size_t size;
};
constexpr TypeInfo kTypes[] = {{"bool", 1},   {"int8", 1},    {"int16", 2},   {"int32", 4},
                               {"int64", 8},  {"uint8", 1},   {"uint16", 2},  {"uint32", 4},
                               {"uint64", 8}, {"float32", 4}, {"float64", 8}, {"string", sizeof(Bytes)}};

}  // namespace

size_t item_size(Type type) { return kTypes[static_cast<int>(type)].size; }

const char* name_of(Type type) { return kTypes[static_cast<int>(type)].name; }

std::optional<Type> type_named(std::string_view name) {
  for (size_t i = 0; i < std::size(kTypes); ++i) {
    if (name == kTypes[i].name) return static_cast<Type>(i);
  }
  return std::nullopt;
}

int64_t Shape::product(int from, int to) const {
  int64_t product = 1;
  bool empty = false, overflow = false;
  for (int i = from; i < to; ++i) {
    check(sizes_[i] >= 0, *this, " is not a shape");
    empty |= sizes_[i] == 0;
    overflow |= __builtin_mul_overflow(product, sizes_[i], &product);
  }
  if (empty) return 0;
  check(!overflow && product <= (int64_t{1} << 46), "a tensor of shape ", *this, " is too large");
  return product;
}

int64_t integer_at(const Tensor& tensor, int64_t i) {
  check(0 <= i && i < tensor.count, "a tensor of shape ", tensor.shape, " where one of more values is expected");
  return for_index(tensor.type, [&]<typename T>(std::type_identity<T>) {
    return static_cast<int64_t>(static_cast<const T*>(tensor.data)[i]);
  });
}

Shape shape_from(const Tensor& tensor) {
  check(tensor.count <= kMaxRank, "a shape of ", tensor.count, " dimensions; at most ", kMaxRank, " are supported");
  Shape shape;
  for (int64_t i = 0; i < tensor.count; ++i) shape.push_back(integer_at(tensor, i));
  return shape;
}

int64_t scalar_integer(const Tensor& tensor, const char* name) {
  check(tensor.count == 1, name, " must be one value, it has shape ", tensor.shape);
  return integer_at(tensor, 0);
}

int axis_of(int64_t axis, int rank, const char* name) {
  check(-rank <= axis && axis < rank, name, " ", axis, " is outside of the ", rank, " dimensions of the tensor");
  return static_cast<int>(axis < 0 ? axis + rank : axis);
}

std::ostream& operator<<(std::ostream& out, const Repr& repr) {
  constexpr size_t kShown = 200;
  out << "b'";
  for (const char c : repr.bytes.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\'' || c == '\\') out << '\\' << c;
    else if (c == '\n') out << "\\n";
    else if (c == '\r') out << "\\r";
    else if (c == '\t') out << "\\t";
    else if (byte < 32 || byte > 126)
      out << "\\x" << std::hex << std::setw(2) << std::setfill('0') << int{byte} << std::dec;
    else out << c;
  }
  return out << (repr.bytes.size() > kShown ? "'..." : "'");
}

std::ostream& operator<<(std::ostream& out, const Listed& list) {
  out << '[';
  const char* between = "";
  for (const int64_t value : list.values) {
    out << between << value;
    between = ", ";
  }
  return out << ']';
}

}  // namespace jaxrank::host
