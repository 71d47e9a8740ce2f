#include "bind_tables.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <system_error>
#include <vector>

#include "errors.h"
#include "lookups.h"
#include "xxh64.h"

namespace nb = nanobind;

namespace {

using namespace jaxrank::tables;
using jaxrank::WorkerPool;

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using RawRows = nb::ndarray<uint8_t, nb::ndim<2>, nb::device::cpu>;
using Numbers = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Checks that `out` is [rows, columns] with contiguous rows in ascending order; the elements between two of them.
template <typename Array>
size_t stride_of(const Array& out, size_t rows, size_t columns) {
  if (out.shape(0) != rows || out.shape(1) != columns)
    throw TableMismatch("the output is [" + std::to_string(out.shape(0)) + ", " + std::to_string(out.shape(1)) + "], it must be [" +
                        std::to_string(rows) + ", " + std::to_string(columns) + "]");
  if (rows < 2) return columns;
  if ((columns > 1 && out.stride(1) != 1) || out.stride(0) < static_cast<int64_t>(columns))
    throw TableMismatch("the columns of an output row must lie beside each other, and its rows behind each other");
  return static_cast<size_t>(out.stride(0));
}

void lookup(const Table& table, const Ids& ids, Rows out) {
  const size_t stride = stride_of(out, ids.shape(0), static_cast<size_t>(table.dim()));
  nb::gil_scoped_release release;
  table.lookup(ids.data(), ids.shape(0), out.data(), stride);
}

void take(const Table& table, const Ids& ids, RawRows out) {
  const size_t stride = stride_of(out, ids.shape(0), static_cast<size_t>(table.row_bytes()));
  nb::gil_scoped_release release;
  table.take(ids.data(), ids.shape(0), reinterpret_cast<std::byte*>(out.data()), stride);
}

void read_rows(const Table& table, int64_t start, Rows out) {
  const size_t stride = stride_of(out, out.shape(0), static_cast<size_t>(table.dim()));
  nb::gil_scoped_release release;
  table.read(start, out.shape(0), out.data(), stride);
}

void find(const Table& table, const Ids& ids, Numbers out) {
  if (out.shape(0) != ids.shape(0)) throw TableMismatch("one row number for each id is needed");
  nb::gil_scoped_release release;
  table.find(ids.data(), ids.shape(0), out.data());
}

// Checks that arrays fit together. `rows` is the number of ids or rows.
Bags bags_of(const int64_t* ids, size_t rows, const Ids& offsets, const std::optional<Weights>& weights, int combiner, float max_norm) {
  if (offsets.shape(0) == 0) throw TableMismatch("offsets are empty; they have one element more than there are segments");
  const size_t segments = offsets.shape(0) - 1;
  if (weights && weights->shape(0) != rows)
    throw TableMismatch(std::to_string(weights->shape(0)) + " weights for " + std::to_string(rows) + " ids");
  const int64_t end = offsets.data()[segments];
  if (end < 0 || static_cast<uint64_t>(end) > rows)
    throw TableMismatch("offsets end with " + std::to_string(end) + ", there are " + std::to_string(rows) + " ids");
  return {ids, offsets.data(), segments, weights ? weights->data() : nullptr, static_cast<Combiner>(combiner), max_norm};
}

void pool(const Table& table, const Ids& ids, const Ids& offsets, const std::optional<Weights>& weights, int combiner,
          float max_norm, Rows out) {
  const Bags bags = bags_of(ids.data(), ids.shape(0), offsets, weights, combiner, max_norm);
  const size_t stride = stride_of(out, bags.segments, static_cast<size_t>(table.dim()));
  nb::gil_scoped_release release;
  table.pool(bags, out.data(), stride);
}

void pool_with(const Table& table, const std::string& name, const Ids& ids, const Ids& offsets, const std::optional<Weights>& weights,
               int combiner, float max_norm, Rows out) {
  const Bags bags = bags_of(ids.data(), ids.shape(0), offsets, weights, combiner, max_norm);
  const size_t stride = stride_of(out, bags.segments, static_cast<size_t>(table.dim()));
  for (const Kernels* kernel : kernels())
    if (name == kernel->name) return table.pool_with(*kernel, bags, out.data(), stride);
  throw TableMismatch("this CPU has no kernels " + name);
}

void pool_gathered(const nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>& rows, const Ids& offsets,
                   const std::optional<Weights>& weights, int combiner, float max_norm, Rows out) {
  const Bags bags = bags_of(nullptr, rows.shape(0), offsets, weights, combiner, max_norm);
  const size_t stride = stride_of(out, bags.segments, rows.shape(1));
  nb::gil_scoped_release release;
  pool_rows(rows.data(), rows.shape(1), bags, out.data(), stride);
}

// `lookups` are tuples (table, ids, offsets or None, weights or None, combiner, max_norm, out), which hold what is read.
void run_all(const nb::list& lookups, WorkerPool* pool) {
  std::vector<Lookup> all;
  all.reserve(nb::len(lookups));
  for (nb::handle item : lookups) {
    const auto fields = nb::cast<nb::tuple>(item);
    const auto& table = nb::cast<const Table&>(fields[0]);
    const auto ids = nb::cast<Ids>(fields[1]);
    const auto offsets = nb::cast<std::optional<Ids>>(fields[2]);
    const auto weights = nb::cast<std::optional<Weights>>(fields[3]);
    const auto out = nb::cast<Rows>(fields[6], false);
    Lookup lookup{&table, {ids.data(), nullptr, 0}, ids.shape(0), out.data(), 0};
    if (offsets)
      lookup.bags = bags_of(ids.data(), ids.shape(0), *offsets, weights, nb::cast<int>(fields[4]), nb::cast<float>(fields[5]));
    lookup.stride = stride_of(out, offsets ? lookup.bags.segments : lookup.ids, static_cast<size_t>(table.dim()));
    all.push_back(lookup);
  }
  nb::gil_scoped_release release;
  run_lookups(all, pool);
}

nb::ndarray<nb::numpy, const uint8_t, nb::ndim<2>> raw(nb::handle self) {
  const auto& table = nb::cast<const Table&>(self);
  table.require_no_overlay();
  const size_t shape[] = {static_cast<size_t>(table.rows()), static_cast<size_t>(table.row_bytes())};
  return {table.data(), 2, shape, self};
}

nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> default_bytes(nb::handle self) {
  const auto& table = nb::cast<const Table&>(self);
  table.require_no_overlay();
  const size_t shape[] = {static_cast<size_t>(table.row_bytes())};
  const std::byte* const row = table.data() + table.rows() * table.row_bytes();
  table.check(row, shape[0]);
  return {row, 1, shape, self};
}

nb::ndarray<nb::numpy, const int64_t, nb::ndim<1>> keys(nb::handle self) {
  const auto& table = nb::cast<const Table&>(self);
  table.require_no_overlay();
  const size_t shape[] = {table.keyed() ? static_cast<size_t>(table.rows()) : 0};
  return {table.keys(), 1, shape, self};
}

void check_rows(const Table& table, int64_t start, int64_t stop) {
  table.require_no_overlay();
  if (start < 0 || start > stop || stop > table.rows())
    throw TableMismatch("there are no rows [" + std::to_string(start) + ", " + std::to_string(stop) + ") in " + table.path() +
                        ", which has " + std::to_string(table.rows()));
  nb::gil_scoped_release release;
  table.check(table.data() + start * table.row_bytes(), static_cast<size_t>((stop - start) * table.row_bytes()));
  if (table.keyed()) table.check(table.keys() + start * 8, static_cast<size_t>((stop - start) * 8));
}

// `changes` are tuples (ids, rows as they are stored, deleted ids, default row or None).
std::shared_ptr<Table> with_changes(const Table& table, const Table* previous, const nb::list& changes) {
  const auto bytes = static_cast<size_t>(table.row_bytes());
  std::vector<Change> all;
  for (nb::handle item : changes) {
    const auto fields = nb::cast<nb::tuple>(item);
    const auto ids = nb::cast<Ids>(fields[0], false);
    const auto rows = nb::cast<nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>>(fields[1], false);
    const auto deleted = nb::cast<Ids>(fields[2], false);
    const auto row = nb::cast<std::optional<Bytes>>(fields[3], false);
    if (rows.shape(0) != ids.shape(0) || rows.shape(1) != bytes || (row && row->shape(0) != bytes))
      throw TableMismatch("changes of " + table.path() + " must have a row of " + std::to_string(bytes) + " bytes for each id");
    all.push_back({ids.data(), reinterpret_cast<const std::byte*>(rows.data()), ids.shape(0), deleted.data(), deleted.shape(0),
                   row ? reinterpret_cast<const std::byte*>(row->data()) : nullptr});
  }
  nb::gil_scoped_release release;
  return std::const_pointer_cast<Table>(table.with(previous, all));
}

template <typename T>
nb::ndarray<nb::numpy, T> owned(std::vector<T> values, std::initializer_list<size_t> shape) {
  auto* const kept = new std::vector<T>(std::move(values));
  return {kept->data(), shape, nb::capsule(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); })};
}

nb::tuple overlay_changes(const Table& table) {
  std::vector<int64_t> ids, deleted;
  std::vector<uint8_t> rows, default_row;
  const auto bytes = static_cast<size_t>(table.row_bytes());
  const Overlay* const overlay = table.overlay();
  if (overlay == nullptr) throw TableMismatch(table.path() + " has no overlay");
  {
    nb::gil_scoped_release release;
    overlay->for_each(
        [&](int64_t id, const std::byte* row) {
          ids.push_back(id);
          rows.insert(rows.end(), reinterpret_cast<const uint8_t*>(row), reinterpret_cast<const uint8_t*>(row) + bytes);
        },
        [&](int64_t id) { deleted.push_back(id); });
  }
  nb::object row = nb::none();
  if (const auto* const data = reinterpret_cast<const uint8_t*>(overlay->default_row()); data != nullptr)
    row = nb::cast(owned<uint8_t>({data, data + bytes}, {bytes}));
  const size_t changed = ids.size(), deletions = deleted.size();
  return nb::make_tuple(owned(std::move(ids), {changed}), owned(std::move(rows), {changed, bytes}),
                        owned(std::move(deleted), {deletions}), row);
}

uint64_t hash(const Bytes& data) {
  nb::gil_scoped_release release;
  return xxh64(reinterpret_cast<const std::byte*>(data.data()), data.shape(0));
}

void mix_keys(const Ids& keys, nb::ndarray<uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  if (out.shape(0) != keys.shape(0)) throw TableMismatch("one hash for each key is needed");
  nb::gil_scoped_release release;
  for (size_t i = 0; i < keys.shape(0); ++i) out.data()[i] = mix(keys.data()[i]);
}

// Raises the exception of serving/tables/errors.py that has this name.
template <typename... Arguments>
void raise(const char* name, const Arguments&... arguments) {
  const nb::object type = nb::module_::import_("serving.tables.errors").attr(name);
  const nb::object error = type(arguments...);
  PyErr_SetObject(type.ptr(), error.ptr());
}

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const RowNotFound& error) {
    raise("RowNotFoundError", error.what(), error.id);
  } catch (const DamagedTable& error) {
    raise("DamagedTableError", error.what());
  } catch (const TableVersion& error) {
    raise("TableVersionError", error.what());
  } catch (const TableMismatch& error) {
    raise("TableMismatchError", error.what());
  } catch (const std::system_error& error) {
    raise("TableError", error.what());
  }
}

}  // namespace

void bind_tables(nb::module_& m) {
  nb::register_exception_translator(translate);
  nb::class_<Table>(m, "NativeTable", "An embedding table's file, mapped; serving/tables/table.py is its documented face.")
      .def_static(
          "open",
          [](const std::string& path, bool prefault, bool lock, bool huge_pages, bool trusted) {
            nb::gil_scoped_release release;
            return std::const_pointer_cast<Table>(
                Table::open(path, {prefault, lock, huge_pages}, trusted ? Check::kNever : Check::kLazily));
          },
          nb::arg("path"), nb::arg("prefault"), nb::arg("lock"), nb::arg("huge_pages"), nb::arg("trusted"))
      .def_prop_ro("rows", &Table::rows)
      .def_prop_ro("dim", &Table::dim)
      .def_prop_ro("row_bytes", &Table::row_bytes)
      .def_prop_ro("file_bytes", &Table::file_bytes)
      .def_prop_ro("keyed", &Table::keyed)
      .def_prop_ro("digest", &Table::digest)
      .def_prop_ro("lineage", [](const Table& t) { return t.header().lineage; })
      .def_prop_ro("sequence", [](const Table& t) { return t.header().sequence; })
      .def_prop_ro("last_delta", [](const Table& t) { return t.header().last_delta; })
      .def_prop_ro("overlay_rows", [](const Table& t) { return t.overlay() == nullptr ? 0 : t.overlay()->entries(); })
      .def_prop_ro("overlay_bytes", [](const Table& t) { return t.overlay() == nullptr ? 0 : t.overlay()->bytes(); })
      .def("with_changes", &with_changes, nb::arg("previous").none(), nb::arg("changes"))
      .def("overlay_changes", &overlay_changes)
      .def_prop_ro("row_format", [](const Table& t) { return static_cast<int>(t.row_format()); })
      .def_prop_ro("default_row", [](const Table& t) { return static_cast<int>(t.default_row()); })
      .def("lookup", &lookup, nb::arg("ids"), nb::arg("out").noconvert())
      .def("take", &take, nb::arg("ids"), nb::arg("out").noconvert())
      .def("read", &read_rows, nb::arg("start"), nb::arg("out").noconvert())
      .def("find", &find, nb::arg("ids"), nb::arg("out").noconvert())
      .def("pool", &pool, nb::arg("ids"), nb::arg("offsets"), nb::arg("weights").none(), nb::arg("combiner"), nb::arg("max_norm"),
           nb::arg("out").noconvert())
      .def("pool_with", &pool_with, nb::arg("kernels"), nb::arg("ids"), nb::arg("offsets"), nb::arg("weights").none(),
           nb::arg("combiner"), nb::arg("max_norm"), nb::arg("out").noconvert())
      .def("raw", [](nb::handle self) { return raw(self); })
      .def("default_bytes", [](nb::handle self) { return default_bytes(self); })
      .def("keys", [](nb::handle self) { return keys(self); })
      .def("check_rows", &check_rows, nb::arg("start"), nb::arg("stop"))
      .def("verify", &Table::verify, nb::call_guard<nb::gil_scoped_release>())
      .def("forget_pages", &Table::forget_pages);
  nb::class_<WorkerPool>(m, "WorkerPool", "Threads that share work with their caller, each pinned to its core.")
      .def("__init__", [](WorkerPool* self, const std::vector<int>& cores) { new (self) WorkerPool(cores); }, nb::arg("cores"))
      .def_prop_ro("threads", &WorkerPool::threads);
  m.def(
      "shared_pool",
      [](const std::vector<int>& cores) {
        // It ends with the process. On a single core its caller is enough.
        static WorkerPool* const pool = new WorkerPool(cores.size() < 2 ? std::span<const int>() : cores);
        return pool;
      },
      nb::arg("cores"), nb::rv_policy::reference, "The pool of this process, made for `cores` by the first call.");
  m.def("run_lookups", &run_all, nb::arg("lookups"), nb::arg("pool").none(),
        "Runs lookups given as (table, ids, offsets, weights, combiner, max_norm, out), split over the pool where it pays.");
  m.def("pool_rows", &pool_gathered, nb::arg("rows"), nb::arg("offsets"), nb::arg("weights").none(), nb::arg("combiner"),
        nb::arg("max_norm"), nb::arg("out").noconvert(), "Combines float32 rows as NativeTable.pool does those of a table.");
  m.def("table_kernels", [] {
    nb::list names;
    for (const Kernels* kernel : kernels()) names.append(kernel->name);
    return names;
  }, "Instruction sets of this CPU that lookups have kernels for, the one in use first.");
  m.def("xxh64", &hash, nb::arg("data"), "XXH64 of uint8 `data` with seed 0.");
  m.def("mix_keys", &mix_keys, nb::arg("keys"), nb::arg("out").noconvert(), "Writes the hashes of a table's int64 keys to uint64 `out`.");
}
