#include "worker_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

namespace jaxrank {

WorkerPool::WorkerPool(std::span<const int> cores) {
  workers_.reserve(cores.size());
  for (const int core : cores) {
    Worker& worker = *workers_.emplace_back(std::make_unique<Worker>());
    worker.core = core;
    worker.thread = std::thread([this, &worker] { serve(worker); });
  }
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  for (auto& worker : workers_) worker->wake.notify_one();
  for (auto& worker : workers_) worker->thread.join();
}

void WorkerPool::share(Job& job) {
  if (job.wanted == 0 || workers_.empty()) return job.call(job.context, false);
  // A thread of this core could only take turns with the caller.
  const int here = sched_getcpu();
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(&job);
    size_t woken = 0;
    for (auto& worker : workers_) {
      if (woken == job.wanted) break;
      if (!worker->idle || worker->core == here) continue;
      worker->idle = false;
      worker->wake.notify_one();
      ++woken;
    }
  }
  job.call(job.context, false);
  std::unique_lock lock(mutex_);
  std::erase(jobs_, &job);
  left_.wait(lock, [&] { return job.inside == 0; });
}

void WorkerPool::serve(Worker& worker) {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (worker.core >= 0 && worker.core < CPU_SETSIZE) CPU_SET(worker.core, &set);
  // Outside of the process's own cores this fails, and the thread stays where it may be.
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
  pthread_setname_np(pthread_self(), "jaxrank-worker");
#endif
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto found = std::find_if(jobs_.begin(), jobs_.end(), [](const Job* job) { return job->wanted > 0; });
    if (found == jobs_.end()) {
      worker.idle = true;
      worker.wake.wait(lock, [&] { return stopping_ || !worker.idle; });
      continue;
    }
    Job& job = **found;
    --job.wanted;
    ++job.inside;
    lock.unlock();
    job.call(job.context, true);
    lock.lock();
    if (--job.inside == 0) left_.notify_all();
  }
}

}  // namespace jaxrank
