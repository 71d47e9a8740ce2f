// The host program in Python: `_core.HostProgram`.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <deque>

#include "../bindings.h"
#include "program.h"
#include "vocabulary.h"

namespace nb = nanobind;

namespace jaxrank::host {

namespace {

std::string bytes_of(nb::handle value) {
  if (nb::isinstance<nb::bytes>(value)) {
    const auto bytes = nb::borrow<nb::bytes>(value);
    return {bytes.c_str(), bytes.size()};
  }
  return bytes_of(value.attr("encode")("utf-8", "surrogateescape"));
}

Attribute attribute_of(nb::handle value) {
  if (value.is_none()) return {};
  if (nb::isinstance<nb::bool_>(value)) return {nb::cast<bool>(value)};
  if (nb::isinstance<nb::int_>(value)) return {nb::cast<int64_t>(value)};
  if (nb::isinstance<nb::float_>(value)) return {nb::cast<double>(value)};
  if (nb::isinstance<nb::str>(value) || nb::isinstance<nb::bytes>(value)) return {bytes_of(value)};
  if (nb::isinstance<nb::list>(value) || nb::isinstance<nb::tuple>(value)) {
    Attribute::List items;
    for (nb::handle item : value) items.push_back(attribute_of(item));
    return {std::move(items)};
  }
  refuse<Unsupported>("an attribute of type ", nb::type_name(value.type()).c_str());
}

std::optional<Type> type_of_format(const char* format) {
  if (format == nullptr) return Type::kUint8;
  if (*format == '<' || *format == '=' || *format == '@') ++format;
  if (format[0] == '\0' || format[1] != '\0') return std::nullopt;
  switch (*format) {
    case '?': return Type::kBool;
    case 'b': return Type::kInt8;
    case 'h': return Type::kInt16;
    case 'i': return Type::kInt32;
    case 'l':
    case 'q': return Type::kInt64;
    case 'B': return Type::kUint8;
    case 'H': return Type::kUint16;
    case 'I': return Type::kUint32;
    case 'L':
    case 'Q': return Type::kUint64;
    case 'f': return Type::kFloat32;
    case 'd': return Type::kFloat64;
    case 'O': return Type::kString;
    default: return std::nullopt;
  }
}

// An array of Python for as long as it lives; `copy` makes one that is contiguous, if it is not.
class Buffer {
 public:
  explicit Buffer(nb::handle array) {
    if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_FORMAT | PyBUF_STRIDES) != 0) throw nb::python_error();
    if (PyBuffer_IsContiguous(&view_, 'C')) return;
    const nb::object whole = nb::module_::import_("numpy").attr("ascontiguousarray")(array);
    PyBuffer_Release(&view_);
    if (PyObject_GetBuffer(whole.ptr(), &view_, PyBUF_FORMAT | PyBUF_STRIDES) != 0) throw nb::python_error();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // The tensor, in the array's memory where that can be. Strings become views of the bytes objects.
  Tensor tensor(Arena& arena) const {
    const std::optional<Type> type = type_of_format(view_.format);
    if (!type) throw nb::type_error((std::string("an array of format ") + view_.format + " is not supported").c_str());
    Tensor tensor{*type, Shape(std::span<const int64_t>(shape(), static_cast<size_t>(view_.ndim))), 0, view_.buf, 0};
    tensor.count = tensor.shape.count();
    if (*type == Type::kString) tensor.data = strings(tensor.count, arena);
    if (*type == Type::kBool) tensor.data = bools(tensor.count, arena);
    return tensor;
  }

 private:
  static_assert(sizeof(Py_ssize_t) == sizeof(int64_t));
  const int64_t* shape() const { return reinterpret_cast<const int64_t*>(view_.shape); }

  Bytes* strings(int64_t count, Arena& arena) const {
    auto** objects = static_cast<PyObject**>(view_.buf);
    auto* out = static_cast<Bytes*>(arena.take(count * sizeof(Bytes)));
    for (int64_t i = 0; i < count; ++i) {
      if (!PyBytes_Check(objects[i])) throw nb::type_error("strings must be bytes objects");
      out[i] = {PyBytes_AS_STRING(objects[i]), static_cast<size_t>(PyBytes_GET_SIZE(objects[i]))};
    }
    return out;
  }

  // A client's bytes may be anything, a C++ bool may not.
  void* bools(int64_t count, Arena& arena) const {
    const auto* bytes = static_cast<const uint8_t*>(view_.buf);
    if (std::all_of(bytes, bytes + count, [](uint8_t byte) { return byte <= 1; })) return view_.buf;
    auto* out = static_cast<uint8_t*>(arena.take(count));
    std::transform(bytes, bytes + count, out, [](uint8_t byte) { return byte != 0; });
    return out;
  }

  Py_buffer view_;
};

// Buffers of a request, in its own memory: nothing is taken from the heap.
class Buffers {
 public:
  Buffers(size_t count, Arena& arena) : all_(static_cast<Buffer*>(arena.take(count * sizeof(Buffer)))) {}
  ~Buffers() { std::destroy_n(all_, count_); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  const Buffer& add(nb::handle array) { return *new (all_ + count_++) Buffer(array); }

 private:
  Buffer* all_;
  size_t count_ = 0;
};

// An array with memory of its own; of strings their list and shape.
nb::object array_of(const Tensor& tensor) {
  if (tensor.type == Type::kString) {
    nb::list texts;
    for (const Bytes text : tensor.values<Bytes>()) texts.append(nb::bytes(text.data(), text.size()));
    nb::list shape;
    for (const int64_t size : tensor.shape) shape.append(size);
    return nb::make_tuple(texts, shape);
  }
  const size_t bytes = tensor.count * item_size(tensor.type);
  auto memory = std::make_unique<std::byte[]>(std::max<size_t>(bytes, 1));
  if (bytes) std::memcpy(memory.get(), tensor.data, bytes);
  std::array<size_t, kMaxRank> shape{};
  std::copy(tensor.shape.begin(), tensor.shape.end(), shape.begin());
  const nb::capsule owner(memory.get(), [](void* p) noexcept { delete[] static_cast<std::byte*>(p); });
  void* data = memory.release();
  const nb::dlpack::dtype dtype = for_plain(tensor.type, []<typename T>(std::type_identity<T>) { return nb::dtype<T>(); });
  return nb::cast(nb::ndarray<nb::numpy>(data, static_cast<size_t>(tensor.rank()), shape.data(), owner, nullptr, dtype));
}

using Tables = std::vector<std::shared_ptr<const tables::Table>>;

// What a program was made of, with the Python objects whose memory it reads.
struct Loaded {
  std::vector<nb::object> names;  // of the features, interned: dictionaries find them by their address
  std::vector<std::string> tables;
  std::deque<Buffer> kept;
  nb::object pool;
  Arena memory{~size_t{0}};  // of constant strings
  std::shared_ptr<const Program> program;

  // The tensor of an array that lives as long as the program.
  Tensor keep(nb::handle array) {
    try {
      return kept.emplace_back(array).tensor(memory);
    } catch (nb::builtin_exception& error) {
      refuse<Unsupported>(error.what());
    }
  }
  StringList strings_of(nb::handle parts);
  std::shared_ptr<const Vocabulary> vocabulary_of(nb::handle parts);
};

StringList Loaded::strings_of(nb::handle parts) {
  const Tensor text = keep(parts[0]), offsets = keep(parts[1]);
  return {reinterpret_cast<const char*>(text.as<uint8_t>()), offsets.values<int64_t>()};
}

// `parts`: keys and values, each an array or (text, offsets), and the default value.
std::shared_ptr<const Vocabulary> Loaded::vocabulary_of(nb::handle parts) {
  Vocabulary::Keys keys;
  if (nb::isinstance<nb::tuple>(parts[0])) {
    keys.strings = true;
    keys.texts = strings_of(parts[0]);
  } else {
    const Tensor numbers = keep(parts[0]);
    for (int64_t i = 0; i < numbers.count; ++i) keys.numbers.push_back(integer_at(numbers, i));
  }
  Vocabulary::Values values;
  if (nb::isinstance<nb::tuple>(parts[1])) {
    values.type = Type::kString;
    values.texts = strings_of(parts[1]);
    values.default_value = bytes_of(parts[2]);
  } else {
    const Tensor found = keep(parts[1]);
    values.type = found.type;
    values.data = found.data;
    for_number(found.type, [&]<typename T>(std::type_identity<T>) {
      const auto missing = nb::cast<T>(parts[2]);
      values.default_value.assign(reinterpret_cast<const char*>(&missing), sizeof missing);
    });
  }
  return std::make_shared<const Vocabulary>(std::move(keys), std::move(values));
}

// A program and one epoch of its tables.
class HostProgram {
 public:
  // `tables` are (table, dtype of what lookups give) by name.
  HostProgram(const std::vector<std::string>& features, const nb::dict& constants, const nb::list& steps,
              const nb::list& columns, const std::vector<std::string>& outputs, std::pair<int64_t, int64_t> widths,
              const nb::dict& tables, const nb::dict& vocabularies, const nb::object& pool, size_t memory_limit)
      : loaded_(std::make_shared<Loaded>()) {
    ProgramSource source{features, {}, {}, {}, outputs, widths.first, widths.second, memory_limit};
    for (const auto& [name, value] : constants) source.constants.emplace(nb::cast<std::string>(name), loaded_->keep(value));
    for (nb::handle step : steps) {
      std::map<std::string, Attribute, std::less<>> attributes;
      for (const auto& [name, value] : nb::cast<nb::dict>(step[4])) {
        attributes.emplace(nb::cast<std::string>(name), attribute_of(value));
      }
      source.steps.push_back({nb::cast<std::string>(step[0]), nb::cast<std::string>(step[1]),
                              nb::cast<std::vector<std::string>>(step[2]), nb::cast<std::vector<std::string>>(step[3]),
                              Attributes(std::move(attributes))});
    }
    for (nb::handle column : columns) {
      source.columns.push_back({nb::cast<std::string>(column[0]), nb::cast<std::string>(column[1]), nb::cast<bool>(column[2]),
                                nb::cast<int64_t>(column[3]), nb::cast<int64_t>(column[4]), nb::cast<bool>(column[5])});
    }
    Resources resources;
    for (const auto& [key, value] : tables) {
      const auto name = nb::cast<std::string>(key), dtype = nb::cast<std::string>(value[1]);
      const std::optional<Type> type = type_named(dtype);
      if (!type) refuse<Unsupported>("the table '", name, "' of ", dtype);
      resources.tables[name] = {name, loaded_->tables.size(), *type};
      loaded_->tables.push_back(name);
      tables_.push_back(nb::cast<std::shared_ptr<tables::Table>>(value[0]));
    }
    for (const auto& [name, parts] : vocabularies) {
      resources.vocabularies[nb::cast<std::string>(name)] = loaded_->vocabulary_of(parts);
    }
    for (const std::string& name : features) {
      loaded_->names.push_back(nb::steal(PyUnicode_InternFromString(name.c_str())));
    }
    loaded_->pool = pool;
    loaded_->program = std::make_shared<const Program>(std::move(source), resources, pool.is_none() ? nullptr : nb::cast<WorkerPool*>(pool));
  }

  // The same program with other states of its tables, by name.
  HostProgram with_tables(const nb::dict& tables) const {
    HostProgram made(*this);
    for (size_t i = 0; i < tables_.size(); ++i) {
      made.tables_[i] = nb::cast<std::shared_ptr<tables::Table>>(tables[loaded_->tables[i].c_str()]);
      if (made.tables_[i]->dim() != tables_[i]->dim()) throw nb::value_error("a table of another dim");
    }
    return made;
  }

  nb::tuple run(const nb::dict& features, int64_t candidates) const {
    if (candidates < 0) throw nb::value_error("a negative number of candidates");
    const std::vector<nb::object>& names = loaded_->names;
    const std::shared_ptr<const Program>& program = loaded_->program;
    Program::Lease lease = Program::lend(program);
    Workspace& workspace = *lease.workspace;
    Buffers buffers(names.size(), workspace.blocks);
    for (size_t i = 0; i < names.size(); ++i) {
      PyObject* value = PyDict_GetItemWithError(features.ptr(), names[i].ptr());
      if (value == nullptr) {
        if (PyErr_Occurred()) throw nb::python_error();
        throw nb::key_error(nb::str(names[i]).c_str());
      }
      program->feature(workspace, i) = buffers.add(value).tensor(workspace.blocks);
    }
    {
      const nb::gil_scoped_release released;
      program->run(workspace, candidates, tables_);
    }
    nb::list outputs;
    for (size_t j = 0; j < program->outputs(); ++j) outputs.append(array_of(program->output(workspace, j)));
    return nb::make_tuple(std::move(lease), outputs);
  }

  size_t candidate_offset() const { return loaded_->program->candidate_offset(); }
  int64_t shared_runs() const { return loaded_->program->shared_runs(); }
  size_t groups() const { return loaded_->program->groups(); }

 private:
  std::shared_ptr<Loaded> loaded_;
  Tables tables_;
};

// The blocks as a buffer, which keeps them until nothing refers to them: NumPy's views of it take nothing from the heap.
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  const auto& lease = *nb::inst_ptr<Program::Lease>(self);
  const std::span<std::byte> both = lease.workspace->both;
  return PyBuffer_FillInfo(view, self, both.data(), static_cast<Py_ssize_t>(both.size()), 0, flags);
}

PyType_Slot kLeaseSlots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(&get_buffer)}, {0, nullptr}};

}  // namespace

}  // namespace jaxrank::host

namespace jaxrank {

void bind_host(nb::module_& m) {
  using namespace host;
  nb::exception<Refusal>(m, "Refusal", PyExc_ValueError);
  nb::exception<Unsupported>(m, "Unsupported", PyExc_ValueError);
  m.def("host_operators", &operator_names, "Names of the host operators that run natively.");
  nb::class_<Program::Lease>(m, "HostLease", nb::type_slots(kLeaseSlots), "Owns the feature blocks of one run until nothing refers to them.");
  nb::class_<HostProgram>(m, "HostProgram")
      .def(
          "__init__",
          [](HostProgram* self, const std::vector<std::string>& features, const nb::dict& constants, const nb::list& steps,
             const nb::list& columns, const std::vector<std::string>& outputs, int64_t request_width, int64_t candidate_width,
             const nb::dict& tables, const nb::dict& vocabularies, const nb::object& pool, size_t memory_limit) {
            new (self) HostProgram(features, constants, steps, columns, outputs, {request_width, candidate_width}, tables,
                                   vocabularies, pool, memory_limit);
          },
          nb::kw_only(), nb::arg("features"), nb::arg("constants"), nb::arg("steps"), nb::arg("columns"), nb::arg("outputs"),
          nb::arg("request_width"), nb::arg("candidate_width"), nb::arg("tables"), nb::arg("vocabularies"), nb::arg("pool").none(),
          nb::arg("memory_limit"))
      .def("with_tables", &HostProgram::with_tables, nb::arg("tables"),
           "The same program with other states of its tables, by name. Both may run at the same time.")
      .def("run", &HostProgram::run, nb::arg("features"), nb::arg("candidates"),
           "Runs one request: arrays by the names of the features. Returns the memory of both blocks, the candidates' after "
           "`candidate_offset` bytes, and the outputs; strings as (list of bytes, shape). Raises Refusal.")
      .def_prop_ro("candidate_offset", &HostProgram::candidate_offset, "Bytes before the candidates' block.")
      .def_prop_ro("groups", &HostProgram::groups, "Parts of the program that do not depend on each other.")
      .def_prop_ro("shared_runs", &HostProgram::shared_runs, "Runs whose groups were offered to other threads.");
}

}  // namespace jaxrank
