// A host program, ready to run: operators in groups that do not depend on each other, and where their results go.
#pragma once

#include <atomic>
#include <mutex>

#include "operator.h"

namespace jaxrank::host {

// What `program.cc` makes a program of. Tensors are named; an operator reads raw features, constants and results of earlier
// operators.
struct StepSource {
  std::string op;
  std::string feature;  // the raw features that it is made of, for messages: "'user_id', 'age'"
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  Attributes attributes;
};
struct ColumnSource {
  std::string tensor;
  std::string feature;  // what it is made of, for messages
  bool candidate;
  int64_t offset;
  int64_t width;
  bool bits;  // an integer as its 32 bits; else a float32
};
struct ProgramSource {
  std::vector<std::string> features;
  std::map<std::string, Tensor, std::less<>> constants;  // memory lives as long as the program
  std::vector<StepSource> steps;
  std::vector<ColumnSource> columns;
  std::vector<std::string> outputs;
  int64_t request_width;
  int64_t candidate_width;
  size_t memory_limit;  // bytes that a request may take, in all arenas of a thread
};

class Program;

// What one request needs while it runs and while its results are read. Lent by a program, and given back to it.
class Workspace {
 public:
  Workspace(const Program& program, size_t limit);

  Tensor request, candidate;   // the blocks: float32 [1, R] and [N, C]
  std::span<std::byte> both;   // the memory of both
  std::vector<Tensor> slots;
  Arena scratch, blocks;
  void reset() { scratch.reset(), blocks.reset(); }
};

// Thread-safe.
class Program {
 public:
  // Throws `Unsupported` for what does not run here, naming the operator.
  // `pool` outlives it; null without one.
  Program(ProgramSource source, const Resources& resources, WorkerPool* pool);

  struct Lease {
    std::shared_ptr<const Program> program;
    std::unique_ptr<Workspace> workspace;
    Lease() = default;
    Lease(Lease&&) = default;
    Lease& operator=(Lease&&) = default;
    ~Lease();
  };
  static Lease lend(const std::shared_ptr<const Program>& program);

  size_t features() const { return features_; }
  size_t outputs() const { return outputs_.size(); }
  // A feature of the request; set before `run`, in memory that lives until the results are read.
  Tensor& feature(Workspace& workspace, size_t i) const { return workspace.slots[i]; }
  const Tensor& output(const Workspace& workspace, size_t i) const { return workspace.slots[outputs_[i]]; }

  // Fills the blocks. `tables` are one epoch of those that `Resources` named, and stay until it returns. Throws the `Refusal`
  // that is first in the order of the program.
  void run(Workspace& workspace, int64_t candidates, std::span<const std::shared_ptr<const tables::Table>> tables) const;

  // Bytes from the request's block to the candidates'.
  size_t candidate_offset() const {
    return (request_width_ * sizeof(float) + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
  }

  // For figures: runs whose groups were offered to other threads.
  int64_t shared_runs() const { return shared_runs_.load(std::memory_order_relaxed); }
  size_t groups() const { return groups_.size(); }

 private:
  friend class Workspace;
  struct Column {
    int slot;
    ColumnSource source;
  };
  struct Step {
    Kernel kernel;
    std::string feature;
    std::vector<int> inputs, outputs;
    int sink = -1;  // the column that its rows are written to
  };
  // Steps in order, and the columns that they make.
  struct Group {
    std::vector<int> steps, columns;
  };
  class Run;

  Arena& arena_of_thread() const;
  void resolve(const ProgramSource& source);
  void place_sinks(const ProgramSource& source);
  void make_groups(const ProgramSource& source);

  size_t features_ = 0;
  std::vector<Tensor> slots_;  // constants in their places
  std::vector<Step> steps_;
  std::vector<Column> columns_;
  std::vector<int> outputs_;
  Group trunk_;  // what several groups read, and what the request's outputs are made of
  std::vector<Group> groups_;
  int64_t request_width_, candidate_width_;
  size_t memory_limit_;
  WorkerPool* pool_;

  // Nanoseconds of all groups, by the number of candidates' power of two; 0 is unknown.
  mutable std::array<std::atomic<int64_t>, 24> busy_{};
  mutable std::atomic<int64_t> shared_runs_{0};
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace jaxrank::host
