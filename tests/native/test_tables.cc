// Embedding tables under sanitizers. Tables come from the Python writer: argv[1] is a directory with <format>-dense and
// <format>-keyed, where element c of row r is (r * 31 + c) % 100 and row r has the key (r * 7919) - 100000; a missing id gives
// zeros.

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "tables/errors.h"
#include "tables/lookups.h"
#include "tables/table.h"

using namespace jaxrank::tables;
using jaxrank::WorkerPool;

namespace {

std::string directory;
const char* const kFormats[] = {"f32", "f16", "bf16", "int8"};

float element(int64_t row, int64_t column) { return static_cast<float>((row * 31 + column) % 100); }

int64_t id_of(const Table& table, int64_t row) { return table.keyed() ? row * 7919 - 100000 : row; }

// int8 rounds to steps of max / 127, and no row has an element above 99.
bool near(const Table& table, float found, float expected, float rows = 1) {
  const float error = table.row_format() == RowFormat::kInt8 ? rows * 99.0F / 254 + 1e-3F : 0;
  return std::abs(found - expected) <= error;
}

std::shared_ptr<const Table> open(const std::string& name, MapOptions options = {}, Check check = Check::kLazily) {
  return Table::open(directory + "/" + name, options, check);
}

void for_every_table(void (*test)(const Table&)) {
  for (const char* format : kFormats)
    for (const char* kind : {"-dense", "-keyed"}) test(*open(std::string(format) + kind));
}

void test_lookup(const Table& table) {
  std::mt19937_64 random(1);
  const auto dim = static_cast<size_t>(table.dim());
  for (const size_t n : {0, 1, 63, 64, 65, 1024, 1025, 5000}) {
    std::vector<int64_t> rows(n), ids(n);
    for (size_t i = 0; i < n; ++i) ids[i] = id_of(table, rows[i] = static_cast<int64_t>(random() % table.rows()));
    if (n > 2) ids[n / 2] = -1'000'000;
    // Exactly as large as needed: one float too many is an error of the address sanitizer.
    const size_t stride = dim + 3;
    std::vector<float> out(n == 0 ? 0 : (n - 1) * stride + dim, -1);
    table.lookup(ids.data(), n, out.data(), stride);
    for (size_t i = 0; i < n; ++i)
      for (size_t c = 0; c < dim; ++c) {
        const bool missing = n > 2 && i == n / 2;
        CHECK(near(table, out[i * stride + c], missing ? 0 : element(rows[i], static_cast<int64_t>(c))));
      }
    std::vector<std::byte> raw(n * static_cast<size_t>(table.row_bytes()));
    table.take(ids.data(), n, raw.data(), static_cast<size_t>(table.row_bytes()));
    std::vector<int64_t> found(n);
    table.find(ids.data(), n, found.data());
    for (size_t i = 0; i < n; ++i) CHECK(found[i] == (n > 2 && i == n / 2 ? -1 : rows[i]));
  }
}

// Several rows beside each other, as the ids of one row of a feature block; in groups, and in pieces of a pool.
void test_rows_together(const Table& table, WorkerPool& pool) {
  std::mt19937_64 random(7);
  const auto dim = static_cast<size_t>(table.dim());
  for (const size_t together : {1, 3, 1000, 1500}) {
    const size_t blocks = 9000 / together, n = blocks * together, stride = together * dim + 2;
    std::vector<int64_t> rows(n), ids(n);
    for (size_t i = 0; i < n; ++i) ids[i] = id_of(table, rows[i] = static_cast<int64_t>(random() % table.rows()));
    std::vector<float> out((blocks - 1) * stride + together * dim, -1);
    const Lookup lookup{&table, {ids.data(), nullptr, 0}, n, out.data(), stride, together};
    for (WorkerPool* const shared : {static_cast<WorkerPool*>(nullptr), &pool}) {
      std::fill(out.begin(), out.end(), -1.0F);
      run_lookups({&lookup, 1}, shared);
      for (size_t i = 0; i < n; ++i)
        for (size_t c = 0; c < dim; ++c)
          CHECK(near(table, out[i / together * stride + i % together * dim + c], element(rows[i], static_cast<int64_t>(c))));
      for (size_t block = 1; block < blocks; ++block) CHECK(out[block * stride - 1] == -1);
    }
  }
}

void test_pool(const Table& table) {
  std::mt19937_64 random(2);
  const auto dim = static_cast<size_t>(table.dim());
  std::vector<int64_t> offsets = {3}, ids = {0, 0, 0}, rows = {0, 0, 0};
  std::vector<float> weights = {1, 1, 1};
  for (const int length : {0, 1, 2, 7, 8, 9, 10, 15, 16, 17, 24, 100, 0, 2500, 3}) {
    for (int i = 0; i < length; ++i) {
      rows.push_back(static_cast<int64_t>(random() % table.rows()));
      ids.push_back(id_of(table, rows.back()));
      weights.push_back(static_cast<float>(random() % 3));
    }
    offsets.push_back(static_cast<int64_t>(ids.size()));
  }
  const size_t segments = offsets.size() - 1;
  for (const bool weighted : {false, true})
    for (const float max_norm : {0.0F, 1e9F})
      for (const Kernels* kernels : kernels()) {
        std::vector<float> out(segments * dim, -1);
        const Bags bags{ids.data(), offsets.data(), segments, weighted ? weights.data() : nullptr, Combiner::kSum, max_norm};
        table.pool_with(*kernels, bags, out.data(), dim);
        for (size_t s = 0; s < segments; ++s)
          for (size_t c = 0; c < dim; ++c) {
            float expected = 0;
            for (auto i = static_cast<size_t>(offsets[s]); i < static_cast<size_t>(offsets[s + 1]); ++i)
              expected += element(rows[i], static_cast<int64_t>(c)) * (weighted ? weights[i] : 1);
            // Sums of small whole numbers are exact in any order; a norm divides and multiplies again.
            const float found = max_norm > 0 ? std::nearbyint(out[s * dim + c]) : out[s * dim + c];
            CHECK(near(table, found, expected, 2.0F * static_cast<float>(offsets[s + 1] - offsets[s])) ||
                  (max_norm > 0 && std::abs(found - expected) <= 1 + expected * 1e-6F));
          }
      }
}

void test_read(const Table& table) {
  const auto dim = static_cast<size_t>(table.dim());
  std::vector<float> out(static_cast<size_t>(table.rows() + 1) * dim);
  table.read(0, static_cast<size_t>(table.rows() + 1), out.data(), dim);
  for (int64_t r = 0; r < table.rows(); ++r) CHECK(near(table, out[static_cast<size_t>(r) * dim], element(r, 0)));
  CHECK(out.back() == 0);
  CHECK(throws<TableMismatch>([&] { table.read(2, static_cast<size_t>(table.rows()), out.data(), dim); }));
  CHECK(throws<TableMismatch>([&] { table.read(-1, 1, out.data(), dim); }));
  table.verify();
  table.forget_pages();
}

void test_bad_offsets(const Table& table) {
  std::vector<float> out(4 * static_cast<size_t>(table.dim()));
  const int64_t ids[] = {id_of(table, 0), id_of(table, 1)};
  for (const std::vector<int64_t>& offsets : {std::vector<int64_t>{-1, 2}, {0, 2, 1}, {INT64_MIN, 0}, {1, 0}})
    CHECK(throws<TableMismatch>([&] { table.pool({ids, offsets.data(), offsets.size() - 1}, out.data(), static_cast<size_t>(table.dim())); }));
}

// Many threads share one table whose blocks are not checked yet, and a pool.
void test_threads() {
  const int cores[] = {0, 1, -1};
  WorkerPool pool(cores);
  for (int round = 0; round < 20; ++round) {
    const auto dense = open("f32-dense"), keyed = open("int8-keyed");
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 4; ++caller)
      callers.emplace_back([&, caller] {
        std::mt19937_64 random(caller);
        const size_t n = 20'000;
        std::vector<int64_t> rows(n), ids(n), offsets;
        for (size_t i = 0; i < n; ++i) ids[i] = id_of(*keyed, rows[i] = static_cast<int64_t>(random() % keyed->rows()));
        for (size_t i = 0; i <= n; i += 1 + random() % 40) offsets.push_back(static_cast<int64_t>(i));
        const size_t segments = offsets.size() - 1;
        const auto dim = static_cast<size_t>(dense->dim());
        std::vector<float> pooled(segments * dim), gathered(n * dim);
        const Lookup lookups[] = {
            {dense.get(), {rows.data(), offsets.data(), segments}, n, pooled.data(), dim},
            {keyed.get(), {ids.data(), nullptr, 0}, n, gathered.data(), dim},
        };
        run_lookups(lookups, &pool);
        for (size_t i = 0; i < n; i += 97) CHECK(near(*keyed, gathered[i * dim], element(rows[i], 0)));
        float expected = 0;
        for (int64_t i = offsets[0]; i < offsets[1]; ++i) expected += element(rows[static_cast<size_t>(i)], 0);
        CHECK(pooled[0] == expected);
      });
    for (std::thread& thread : callers) thread.join();
    // What a worker throws arrives at the caller.
    std::atomic<int> ran = 0;
    CHECK(throws<TableMismatch>([&] {
      pool.run(100, [&](size_t i) {
        ++ran;
        if (i == 50) throw TableMismatch("of a worker");
      });
    }));
    CHECK(ran > 0 && ran <= 100);
  }
}

// Cut, flipped and overwritten files, with and without checksums: exceptions, or rows; nothing outside of the file is read.
void test_damage() {
  std::mt19937_64 random(3);
  for (const char* name : {"f16-dense", "f32-keyed"}) {
    std::ifstream in(directory + "/" + name, std::ios::binary);
    const std::vector<char> whole((std::istreambuf_iterator<char>(in)), {});
    const std::string path = directory + "/damaged";
    int refused = 0;
    for (int round = 0; round < 400; ++round) {
      std::vector<char> bytes = whole;
      const bool behind_header = round % 2 == 0;
      for (uint64_t i = random() % 4 + 1; i > 0; --i) {
        const size_t at = behind_header ? 4096 + random() % (bytes.size() - 4096) : random() % 120;
        bytes[at] = static_cast<char>(random());
      }
      if (round % 5 == 0) bytes.resize(random() % bytes.size());
      std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      try {
        const auto table = open("damaged", {}, round % 4 < 2 ? Check::kNever : Check::kLazily);
        std::vector<int64_t> ids(static_cast<size_t>(table->rows()));
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = id_of(*table, static_cast<int64_t>(i));
        std::vector<float> out(ids.size() * static_cast<size_t>(table->dim()));
        table->lookup(ids.data(), ids.size(), out.data(), static_cast<size_t>(table->dim()));
        for (int64_t& id : ids) id = static_cast<int64_t>(random());
        table->find(ids.data(), ids.size(), ids.data());
      } catch (const TableError&) {
        ++refused;
      }
    }
    CHECK(refused > 200);
    std::remove(path.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 2);
  directory = argv[1];
  for_every_table(test_lookup);
  for_every_table(test_pool);
  for_every_table(test_read);
  for_every_table(test_bad_offsets);
  const int cores[] = {0, 1, 0, 1};
  WorkerPool pool(cores);
  for (const char* name : {"f32-dense", "int8-keyed"}) test_rows_together(*open(name), pool);
  test_threads();
  test_damage();
  MapOptions copied;
  copied.huge_pages = true;
  test_lookup(*open("bf16-keyed", copied, Check::kNever));
  std::puts("ok");
}
