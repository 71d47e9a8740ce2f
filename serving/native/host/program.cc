#include "program.h"

#include <bit>
#include <chrono>
#include <limits>
#include <set>
#include <utility>

#include "layout.h"

namespace jaxrank::host {

namespace {

// A step with results for as many others is run before them: its readers do not depend on each other because of it.
constexpr int kManyReaders = 4;
// Workspaces kept for later requests.
constexpr size_t kKeptWorkspaces = 64;

// bool is no integer to std::in_range.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, bool>, int, T>;

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Operators that only see a tensor in another shape: what reads their result may read it in a block.
bool only_reshapes(std::string_view op) {
  return op == "identity" || op == "stop_gradient" || op == "snapshot" || op == "prevent_gradient" || op == "reshape" ||
         op == "expand_dims" || op == "squeeze" || op == "ensure_shape";
}

bool writes_rows(std::string_view op) { return op == "embedding_lookup" || op == "embedding_bag"; }

// Integers as the 32 bits that the dense program takes them for.
template <typename T>
void write_bits(const T* from, int64_t rows, const ColumnSource& column, float* to, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i, to += stride) {
    for (int64_t j = 0; j < column.width; ++j, ++from) {
      check(std::in_range<int32_t>(static_cast<Wide<T>>(*from)), "feature ", column.feature,
            " has a value beyond 32 bits, which the dense program cannot hold");
      const auto bits = static_cast<int32_t>(*from);
      std::memcpy(to + j, &bits, sizeof bits);
    }
  }
}

// Writes a tensor's values to its columns of a block.
void write_column(const Tensor& value, const ColumnSource& column, Tensor& block) {
  const int64_t rows = block.shape[0], stride = block.shape[1], width = column.width;
  check(value.count == rows * width, "feature ", column.feature, " gives values of shape ", value.shape,
        " where the model takes ", rows, " rows of ", width, "; send as many as the model was made for");
  float* to = static_cast<float*>(block.data) + column.offset;
  if (value.block_stride != 0) return;  // it is there
  if (column.bits) {
    for_plain(value.type, [&]<typename T>(std::type_identity<T>) {
      if constexpr (std::is_floating_point_v<T>) refuse("feature ", column.feature, " is not an integer");
      else write_bits(value.as<T>(), rows, column, to, stride);
    });
    return;
  }
  for_plain(value.type, [&]<typename T>(std::type_identity<T>) {
    const T* from = value.as<T>();
    for (int64_t i = 0; i < rows; ++i, to += stride, from += width) {
      if constexpr (std::is_same_v<T, float>) std::memcpy(to, from, width * sizeof(float));
      else
        for (int64_t j = 0; j < width; ++j) to[j] = static_cast<float>(from[j]);
    }
  });
}

}  // namespace

Workspace::Workspace(const Program& program, size_t limit) : slots(program.slots_), scratch(limit), blocks(limit) {}

Program::Program(ProgramSource source, const Resources& resources, WorkerPool* pool)
    : features_(source.features.size()),
      request_width_(source.request_width),
      candidate_width_(source.candidate_width),
      memory_limit_(source.memory_limit),
      pool_(pool) {
  for (const StepSource& step : source.steps) {
    const MakeKernel make = find_operator(step.op);
    if (make == nullptr) refuse<Unsupported>(step.op, ": there is no native operator of this name");
    try {
      steps_.push_back({make(step.attributes, resources), step.feature, {}, {}, -1});
    } catch (const Unsupported& error) {
      refuse<Unsupported>(step.op, ": ", error.what());
    }
  }
  resolve(source);
  place_sinks(source);
  make_groups(source);
}

// Names become places in `slots_`.
void Program::resolve(const ProgramSource& source) {
  std::map<std::string, int, std::less<>> places;
  const auto place = [&](const std::string& name) {
    places[name] = static_cast<int>(slots_.size());
    slots_.emplace_back();
    return places[name];
  };
  const auto find = [&](const std::string& name) {
    const auto found = places.find(name);
    if (found == places.end()) refuse<Unsupported>("nothing makes the tensor '", name, "'");
    return found->second;
  };
  for (const std::string& name : source.features) place(name);
  for (const auto& [name, value] : source.constants) slots_[place(name)] = value;
  for (size_t i = 0; i < steps_.size(); ++i) {
    for (const std::string& name : source.steps[i].inputs) steps_[i].inputs.push_back(find(name));
    for (const std::string& name : source.steps[i].outputs) steps_[i].outputs.push_back(place(name));
  }
  for (const ColumnSource& column : source.columns) columns_.push_back({find(column.tensor), column});
  for (const std::string& name : source.outputs) outputs_.push_back(find(name));
}

// A lookup whose rows are read by one column only, as they are or in another shape, writes them there itself.
void Program::place_sinks(const ProgramSource& source) {
  std::vector<int> readers(slots_.size()), maker(slots_.size(), -1);
  for (size_t i = 0; i < steps_.size(); ++i) {
    for (const int slot : steps_[i].inputs) ++readers[slot];
    for (const int slot : steps_[i].outputs) maker[slot] = static_cast<int>(i);
  }
  for (const Column& column : columns_) ++readers[column.slot];
  for (const int slot : outputs_) ++readers[slot];
  for (size_t c = 0; c < columns_.size(); ++c) {
    if (columns_[c].source.bits) continue;
    int slot = columns_[c].slot;
    while (readers[slot] == 1 && maker[slot] >= 0) {
      const int step = maker[slot];
      if (writes_rows(source.steps[step].op)) steps_[step].sink = static_cast<int>(c);
      if (!only_reshapes(source.steps[step].op)) break;
      slot = steps_[step].inputs[0];
    }
  }
}

void Program::make_groups(const ProgramSource&) {
  const int count = static_cast<int>(steps_.size());
  std::vector<int> maker(slots_.size(), -1);
  std::vector<std::set<int>> readers(count);
  for (int i = 0; i < count; ++i) {
    for (const int slot : steps_[i].outputs) maker[slot] = i;
    for (const int slot : steps_[i].inputs) {
      if (maker[slot] >= 0) readers[maker[slot]].insert(i);
    }
  }
  // The trunk: what many read, what the request's own outputs are, and all that these are made of.
  std::vector<bool> trunk(count);
  for (int i = 0; i < count; ++i) trunk[i] = static_cast<int>(readers[i].size()) >= kManyReaders;
  for (const int slot : outputs_) {
    if (maker[slot] >= 0) trunk[maker[slot]] = true;
  }
  for (int i = count - 1; i >= 0; --i) {
    if (!trunk[i]) continue;
    trunk_.steps.insert(trunk_.steps.begin(), i);
    for (const int slot : steps_[i].inputs) {
      if (maker[slot] >= 0) trunk[maker[slot]] = true;
    }
  }
  // The rest falls into parts that share nothing: each step is joined to those that it reads.
  std::vector<int> parent(count);
  for (int i = 0; i < count; ++i) parent[i] = i;
  const auto root = [&](int i) {
    while (parent[i] != i) i = parent[i] = parent[parent[i]];
    return i;
  };
  for (int i = 0; i < count; ++i) {
    for (const int slot : steps_[i].inputs) {
      if (!trunk[i] && maker[slot] >= 0 && !trunk[maker[slot]]) parent[root(i)] = root(maker[slot]);
    }
  }
  std::map<int, int> number;
  for (int i = 0; i < count; ++i) {
    if (trunk[i]) continue;
    const auto [at, added] = number.emplace(root(i), static_cast<int>(groups_.size()));
    if (added) groups_.emplace_back();
    groups_[at->second].steps.push_back(i);
  }
  for (size_t c = 0; c < columns_.size(); ++c) {
    const int step = maker[columns_[c].slot];
    Group& group = step < 0 || trunk[step] ? trunk_ : groups_[number.at(root(step))];
    group.columns.push_back(static_cast<int>(c));
  }
}

Program::Lease Program::lend(const std::shared_ptr<const Program>& program) {
  Lease lease;
  lease.program = program;
  {
    const std::lock_guard lock(program->mutex_);
    if (!program->free_.empty()) {
      lease.workspace = std::move(program->free_.back());
      program->free_.pop_back();
      return lease;
    }
  }
  lease.workspace = std::make_unique<Workspace>(*program, program->memory_limit_);
  return lease;
}

Program::Lease::~Lease() {
  if (!workspace) return;
  workspace->reset();
  const std::lock_guard lock(program->mutex_);
  if (program->free_.size() < kKeptWorkspaces) {
    program->free_.reserve(kKeptWorkspaces);
    program->free_.push_back(std::move(workspace));
  }
}

// One request's run: groups are taken by whoever is free, and the first refusal in the order of the program is kept.
class Program::Run {
 public:
  Run(const Program& program, Workspace& workspace, const Request& request)
      : program_(program), workspace_(workspace), request_(request) {}

  // Runs a group; false if it refused. Does not throw.
  void run(const Group& group, Arena& arena) {
    int64_t at = 0;
    try {
      for (const int i : group.steps) {
        at = i;
        run(program_.steps_[i], arena);
      }
      for (const int c : group.columns) {
        // Columns come after all steps.
        at = static_cast<int64_t>(program_.steps_.size()) + c;
        const Column& column = program_.columns_[c];
        write_column(workspace_.slots[column.slot], column.source, block(column.source));
      }
    } catch (...) {
      fail(at, std::current_exception());
    }
  }

  void run_groups(Arena& arena) {
    const int64_t start = now();
    const Arena::Mark mark = arena.mark();
    for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < program_.groups_.size();) {
      run(program_.groups_[i], arena);
      arena.rewind(mark);
    }
    busy_.fetch_add(now() - start, std::memory_order_relaxed);
  }

  int64_t busy() const { return busy_.load(std::memory_order_relaxed); }

  void rethrow() const {
    if (!failure_) return;
    if (failed_at_ >= static_cast<int64_t>(program_.steps_.size())) std::rethrow_exception(failure_);
    try {
      std::rethrow_exception(failure_);
    } catch (const Refusal& refusal) {
      refuse("feature ", program_.steps_[failed_at_].feature, ": ", refusal.what());
    }
  }

 private:
  Tensor& block(const ColumnSource& column) const { return column.candidate ? workspace_.candidate : workspace_.request; }

  void run(const Step& step, Arena& arena) {
    Tensor* outputs[kFewOutputs];
    std::span<Tensor*> given(outputs, step.outputs.size());
    if (step.outputs.size() > kFewOutputs) {
      given = {static_cast<Tensor**>(arena.take(step.outputs.size() * sizeof(Tensor*))), step.outputs.size()};
    }
    for (size_t i = 0; i < given.size(); ++i) {
      given[i] = &workspace_.slots[step.outputs[i]];
      given[i]->data = nullptr;  // not the last request's
    }
    Sink sink;
    if (step.sink >= 0) {
      const ColumnSource& column = program_.columns_[step.sink].source;
      const Tensor& target = block(column);
      sink = {static_cast<float*>(target.data) + column.offset, target.shape[0], column.width, target.shape[1]};
    }
    Call call(workspace_.slots.data(), step.inputs, given, arena, request_, step.sink >= 0 ? &sink : nullptr);
    step.kernel(call);
    for (const Tensor* made : given) check(made->data != nullptr, "an operator makes fewer tensors than the program has names for");
  }

  void fail(int64_t at, std::exception_ptr failure) {
    const std::lock_guard lock(mutex_);
    if (failure_ && failed_at_ <= at) return;
    failed_at_ = at;
    failure_ = std::move(failure);
  }

  static constexpr size_t kFewOutputs = 16;
  const Program& program_;
  Workspace& workspace_;
  const Request& request_;
  std::atomic<size_t> next_{0};
  std::atomic<int64_t> busy_{0};
  std::mutex mutex_;
  int64_t failed_at_ = 0;
  std::exception_ptr failure_;
};

// A helper's memory for the groups that it runs: one at a time, of whatever program.
Arena& Program::arena_of_thread() const {
  thread_local Arena arena(0);
  arena.limit(memory_limit_);
  return arena;
}

void Program::run(Workspace& workspace, int64_t candidates, std::span<const std::shared_ptr<const tables::Table>> tables) const {
  workspace.request = {Type::kFloat32, {1, request_width_}, request_width_, nullptr, 0};
  workspace.candidate = {Type::kFloat32, {candidates, candidate_width_}, 0, nullptr, 0};
  workspace.candidate.count = workspace.candidate.shape.count();
  // Both in one piece, the candidates' block at the beginning of a cache line.
  const size_t offset = candidate_offset();
  // Never nothing: NumPy takes no empty buffer.
  const size_t size = std::max(offset + workspace.candidate.count * sizeof(float), Arena::kAlignment);
  workspace.both = {static_cast<std::byte*>(workspace.blocks.take(size)), size};
  workspace.request.data = workspace.both.data();
  workspace.candidate.data = workspace.both.data() + offset;
  const Request request{candidates, tables, pool_};
  Run run(*this, workspace, request);
  run.run(trunk_, workspace.scratch);
  const int bucket = std::min<int>(std::bit_width(static_cast<uint64_t>(candidates)), busy_.size() - 1);
  std::atomic<int64_t>& usual = busy_[bucket];
  const int64_t expected = usual.load(std::memory_order_relaxed);
  if (pool_ != nullptr && pool_->threads() > 1 && expected > WorkerPool::kWorthWaking && groups_.size() > 1) {
    shared_runs_.fetch_add(1, std::memory_order_relaxed);
    pool_->share(groups_.size() - 1, [&](bool helps) {
      Arena& arena = helps ? arena_of_thread() : workspace.scratch;
      run.run_groups(arena);
      if (helps) arena.reset();
    });
  } else {
    run.run_groups(workspace.scratch);
  }
  usual.store(expected ? expected + (run.busy() - expected) / 8 : run.busy(), std::memory_order_relaxed);
  run.rethrow();
}

}  // namespace jaxrank::host
