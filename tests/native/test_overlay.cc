// Overlays under sanitizers: what they find, and readers beside an updater. argv[1] is as for test_tables.cc.

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

#include "check.h"
#include "tables/errors.h"
#include "tables/table.h"

using namespace jaxrank::tables;

namespace {

std::string directory;

std::shared_ptr<const Table> open(const std::string& name) { return Table::open(directory + "/" + name); }

int64_t id_of(const Table& table, int64_t row) { return table.keyed() ? row * 7919 - 100000 : row; }

// Random changes and, where there are keys, new rows and deletions, step by step, against a map.
void test_against_a_map(const std::string& name) {
  std::mt19937_64 random(5);
  constexpr size_t kDim = 21;
  const auto base = open(name);
  std::unordered_map<int64_t, float> rows;  // NaN: deleted
  std::shared_ptr<const Table> table = base;
  for (int step = 0; step < 60; ++step) {
    std::vector<int64_t> ids, deleted;
    std::vector<float> values;
    for (uint64_t i = random() % 200; i > 0; --i) {
      // Of the table, or new ones; of few enough that many come again.
      const int64_t id = random() % 2 == 0 || !base->keyed() ? id_of(*base, static_cast<int64_t>(random() % 500)) : static_cast<int64_t>(random() % 300) * 7919 * 3 + 1;
      if (random() % 4 == 0 && base->keyed()) {
        deleted.push_back(id);
      } else {
        ids.push_back(id);
        values.insert(values.end(), kDim, static_cast<float>(step * 1000 + static_cast<int>(i)));
        rows[id] = values.back();
      }
    }
    for (const int64_t id : deleted) rows[id] = NAN;
    const std::vector<float> row(kDim, static_cast<float>(-step));
    Change change{ids.data(), reinterpret_cast<const std::byte*>(values.data()), ids.size(), deleted.data(), deleted.size()};
    if (step % 10 == 9) change.default_row = reinterpret_cast<const std::byte*>(row.data());
    table = base->with(table.get(), std::span(&change, 1));
    CHECK(table->overlay()->entries() == rows.size());
    const int given = step - (step + 1) % 10;  // the step that gave the default row; below 0 before there was one
    const float missing = given < 0 ? 0 : static_cast<float>(-given);
    for (size_t start = 0; start < 700; start += 70) {
      std::vector<int64_t> wanted;
      std::vector<float> expected;
      for (size_t i = start; i < start + 70; ++i) {
        const auto number = static_cast<int64_t>(i < 500 ? i : i - 500);
        const int64_t id = i < 500 ? id_of(*base, number) : base->keyed() ? number * 7919 * 3 + 1 : base->rows() + number;
        wanted.push_back(id);
        const auto found = rows.find(id);
        if (found == rows.end())
          expected.push_back(i < 500 ? static_cast<float>(number * 31 % 100) : missing);
        else
          expected.push_back(std::isnan(found->second) ? missing : found->second);
      }
      std::vector<float> out(wanted.size() * kDim);
      table->lookup(wanted.data(), wanted.size(), out.data(), kDim);
      for (size_t i = 0; i < wanted.size(); ++i) CHECK(out[i * kDim] == expected[i]);
    }
  }
  CHECK(throws<TableMismatch>([&] { table->require_no_overlay(); }));
  CHECK(throws<TableMismatch>([&] { base->with(open("f16-" + name.substr(4)).get(), {}); }));
  CHECK(throws<TableMismatch>([&] { base->with(open(base->keyed() ? "f32-dense" : "f32-keyed").get(), {}); }));
}

// A table without keys has the rows that it has.
void test_refused_changes() {
  const auto base = open("f32-dense");
  const std::vector<std::byte> row(static_cast<size_t>(base->row_bytes()));
  for (const int64_t id : {int64_t{-1}, base->rows(), INT64_MAX}) {
    const Change change{&id, row.data(), 1, nullptr, 0};
    CHECK(throws<TableMismatch>([&] { base->with(nullptr, std::span(&change, 1)); }));
  }
  const int64_t id = 3;
  const Change deletion{nullptr, nullptr, 0, &id, 1};
  CHECK(throws<TableMismatch>([&] { base->with(nullptr, std::span(&deletion, 1)); }));
}

// Readers take the table that there is and find one epoch in all of it; an updater publishes the next, and old ones go when
// their last reader ends.
void test_readers_beside_an_updater(const std::string& name) {
  constexpr int kReaders = 4, kEpochs = 300;
  constexpr size_t kDim = 21, kIds = 600;
  const auto base = open(name);
  std::vector<int64_t> ids(kIds);
  for (size_t i = 0; i < kIds; ++i) ids[i] = id_of(*base, static_cast<int64_t>(i));
  const auto next = [&](const Table* before, int epoch) {
    std::vector<float> values(kIds * kDim, static_cast<float>(epoch));
    const Change change{ids.data(), reinterpret_cast<const std::byte*>(values.data()), kIds, nullptr, 0};
    return base->with(before, std::span(&change, 1));
  };
  std::mutex mutex;
  std::shared_ptr<const Table> now = next(nullptr, 0);
  std::atomic<bool> done = false;
  std::vector<std::thread> readers;
  for (int r = 0; r < kReaders; ++r)
    readers.emplace_back([&] {
      std::vector<float> out(kIds * kDim);
      const std::vector<int64_t> offsets = {0, 1, kIds / 2, kIds};
      float last = 0;
      while (!done) {
        std::shared_ptr<const Table> mine;
        {
          const std::lock_guard lock(mutex);
          mine = now;
        }
        mine->lookup(ids.data(), kIds, out.data(), kDim);
        CHECK(out[0] >= last);
        last = out[0];
        for (const float value : out) CHECK(value == last);
        mine->pool({ids.data(), offsets.data(), 3, nullptr, Combiner::kMean}, out.data(), kDim);
        for (size_t i = 0; i < 3 * kDim; ++i) CHECK(out[i] == last);
      }
    });
  for (int epoch = 1; epoch <= kEpochs; ++epoch) {
    auto table = next(now.get(), epoch);
    const std::lock_guard lock(mutex);
    now = std::move(table);
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 2);
  directory = argv[1];
  for (const char* name : {"f32-dense", "f32-keyed"}) test_against_a_map(name);
  test_refused_changes();
  test_readers_beside_an_updater("f32-dense");
  test_readers_beside_an_updater("f32-keyed");
  std::puts("ok");
}
