// Finds the tensors of a serialized PredictRequest, so that their values are read where they lie.
//
// Protocol Buffers' own parser copies every `tensor_content`. Here only what TensorFlow's clients send is understood; what is
// anything else, damaged messages among them, is left to that parser, which has the last word.
// https://protobuf.dev/programming-guides/encoding

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "bindings.h"

namespace nb = nanobind;

namespace jaxrank {

namespace {

enum WireType : uint32_t { kVarint = 0, kBytes = 2 };

constexpr size_t kMostDimensions = 16;  // serving/wire/codec.py: MAX_RANK

struct Field {
  uint32_t number, type;
  uint64_t value;         // of a varint
  std::string_view bytes;  // of the others
  bool is(uint32_t wanted, uint32_t of_type) const { return number == wanted && type == of_type; }
};

// The fields of one message. Every length is checked against what is left.
class Fields {
 public:
  explicit Fields(std::string_view message) : left_(message) {}

  bool done() const { return left_.empty(); }

  // Nothing for damaged ones, and for types that no message here has.
  std::optional<Field> next() {
    uint64_t tag, value;
    if (!varint(tag, 5) || tag >> 32 || !(tag >> 3) || !varint(value, 10)) return std::nullopt;
    Field field{static_cast<uint32_t>(tag >> 3), static_cast<uint32_t>(tag & 7), value, {}};
    if (field.type == kVarint) return field;
    if (field.type != kBytes || value > left_.size()) return std::nullopt;
    field.bytes = left_.substr(0, value);
    left_.remove_prefix(value);
    return field;
  }

 private:
  bool varint(uint64_t& value, size_t most) {
    value = 0;
    for (size_t i = 0; i < most && i < left_.size(); ++i) {
      const auto byte = static_cast<uint8_t>(left_[i]);
      if (i == 9 && byte > 1) return false;
      value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) {
        left_.remove_prefix(i + 1);
        return true;
      }
    }
    return false;
  }

  std::string_view left_;
};

struct Content {
  uint64_t dtype = 0;
  size_t rank = 0;
  int64_t shape[kMostDimensions];
  std::string_view bytes;
};

bool read_dimension(std::string_view message, int64_t& size) {
  size = 0;
  for (Fields fields(message); !fields.done();) {
    const auto field = fields.next();
    if (!field || !field->is(1, kVarint) || field->value > INT64_MAX) return false;
    size = static_cast<int64_t>(field->value);
  }
  return true;
}

bool read_shape(std::string_view message, Content& content) {
  for (Fields fields(message); !fields.done();) {
    const auto field = fields.next();
    if (!field || !field->is(2, kBytes) || content.rank == kMostDimensions) return false;
    if (!read_dimension(field->bytes, content.shape[content.rank++])) return false;
  }
  return true;
}

// A TensorProto that has dtype, tensor_shape and tensor_content, and nothing else.
std::optional<Content> read_tensor(std::string_view message) {
  Content content;
  bool has_shape = false;
  for (Fields fields(message); !fields.done();) {
    const auto field = fields.next();
    if (!field) return std::nullopt;
    if (field->is(1, kVarint) && field->value <= INT32_MAX) {
      content.dtype = field->value;
    } else if (field->is(2, kBytes) && !has_shape) {
      has_shape = true;
      if (!read_shape(field->bytes, content)) return std::nullopt;
    } else if (field->is(4, kBytes)) {
      content.bytes = field->bytes;
    } else {
      return std::nullopt;
    }
  }
  return content.bytes.empty() ? std::nullopt : std::optional(content);
}

struct Input {
  std::string_view name, tensor;
};

// One entry of `inputs`.
std::optional<Input> read_input(std::string_view message) {
  Fields fields(message);
  std::optional<std::string_view> parts[2];
  while (!fields.done()) {
    const auto field = fields.next();
    if (!field || field->type != kBytes || field->number > 2 || parts[field->number - 1]) return std::nullopt;
    parts[field->number - 1] = field->bytes;
  }
  if (!parts[0] || !parts[1]) return std::nullopt;
  return Input{*parts[0], *parts[1]};
}

nb::bytes bytes_of(std::string_view text) { return nb::bytes(text.data(), text.size()); }

// Null for what is not UTF-8.
nb::object text_of(std::string_view text) {
  auto* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
  if (decoded == nullptr) PyErr_Clear();
  return nb::steal(decoded);
}

nb::object tensor_of(std::string_view tensor, std::string_view data) {
  const auto content = read_tensor(tensor);
  if (!content) return bytes_of(tensor);
  nb::tuple shape = nb::steal<nb::tuple>(PyTuple_New(static_cast<Py_ssize_t>(content->rank)));
  for (size_t i = 0; i < content->rank; ++i) {
    PyTuple_SET_ITEM(shape.ptr(), static_cast<Py_ssize_t>(i), nb::int_(content->shape[i]).release().ptr());
  }
  return nb::make_tuple(content->dtype, shape, content->bytes.data() - data.data(), content->bytes.size());
}

nb::object find_tensors(nb::bytes request) {
  const std::string_view data(request.c_str(), request.size());
  nb::dict inputs;
  nb::list filter;
  nb::object spec = nb::none();
  for (Fields fields(data); !fields.done();) {
    const auto field = fields.next();
    if (!field) return nb::none();
    if (field->is(1, kBytes) && spec.is_none()) {
      spec = bytes_of(field->bytes);
    } else if (field->is(2, kBytes)) {
      const auto input = read_input(field->bytes);
      const auto name = input ? text_of(input->name) : nb::object();
      // Of two of one name the last counts, and the first must parse all the same.
      if (!name || inputs.contains(name)) return nb::none();
      inputs[name] = tensor_of(input->tensor, data);
    } else if (field->is(3, kBytes)) {
      const auto name = text_of(field->bytes);
      if (!name) return nb::none();
      filter.append(name);
    } else {
      return nb::none();
    }
  }
  return spec.is_none() ? spec : nb::make_tuple(spec, filter, inputs);
}

}  // namespace

void bind_wire(nb::module_& m) {
  m.def("find_tensors", &find_tensors, nb::arg("request"),
        "The parts of a serialized PredictRequest: (model_spec, output_filter, inputs). An input is (dtype, shape, offset, size) "
        "of its tensor_content in the request, or the bytes of a TensorProto that has anything else. None for a message that is "
        "damaged or unusual: Protocol Buffers' parser says what it is.");
}

}  // namespace jaxrank
