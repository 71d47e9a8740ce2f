// Threads that help whoever has more work than waking them costs: one for each core, for all that a process does.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

namespace jaxrank {

class WorkerPool {
 public:
  // A sleeping thread takes about 50 us until it works, and more on a busy machine: with less work than this many nanoseconds
  // the caller is done before.
  static constexpr int64_t kWorthWaking = 200'000;
  // Pieces of less are not worth to be cut.
  static constexpr int64_t kSmallestPiece = 25'000;
  static constexpr int64_t kPiecesOfThread = 4;

  // One thread for each core, pinned to it where the system lets it.
  explicit WorkerPool(std::span<const int> cores);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  size_t threads() const { return workers_.size(); }

  // Calls `job(false)` on this thread, and while that runs `job(true)` on up to `helpers` threads of other cores as they are
  // idle; returns when all have returned. Nobody waits for a thread that has not begun. `job` takes what is left to do, and
  // must not throw. Any number of threads may call it at the same time, also from a job.
  template <typename F>
  void share(size_t helpers, F&& job) {
    Job shared{[](void* context, bool helps) { (*static_cast<std::remove_reference_t<F>*>(context))(helps); }, &job, helpers};
    share(shared);
  }

  // Calls `work(i)` for each i below `count`, on this thread and on idle ones. If some throw, the exception of the lowest i is
  // thrown here; of what comes behind that one, some is skipped.
  template <typename F>
  void run(size_t count, F&& work) {
    std::atomic<size_t> next = 0;
    std::mutex mutex;
    size_t failed = std::numeric_limits<size_t>::max();
    std::exception_ptr error;
    share(count == 0 ? 0 : count - 1, [&](bool) {
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        try {
          work(i);
        } catch (...) {
          next.store(count, std::memory_order_relaxed);
          const std::lock_guard lock(mutex);
          if (i < failed) failed = i, error = std::current_exception();
        }
      }
    });
    if (error) std::rethrow_exception(error);
  }

 private:
  struct Job {
    void (*call)(void*, bool);
    void* context;
    size_t wanted;      // helpers that may still come
    size_t inside = 0;  // helpers that work on it
  };
  struct Worker {
    std::condition_variable wake;
    int core = 0;
    bool idle = false;
    std::thread thread;
  };

  void share(Job& job);
  void serve(Worker& worker);

  std::mutex mutex_;  // guards jobs, and what is said of them and of workers
  std::condition_variable left_;
  std::vector<Job*> jobs_;  // that want helpers
  bool stopping_ = false;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace jaxrank
