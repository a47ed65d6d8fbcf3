// Threads of a call: the caller's own and helpers from a pool that all calls of the process share.
// A call never waits for a helper that has not come: one that finds its work done is not needed.
// Nothing is shared with the OpenMP pools of torch and faiss; a forked child begins a pool anew.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace divse {

// `requested` if positive, else OMP_NUM_THREADS, else the CPUs this process may use.
int thread_count(int requested);

// At most `threads`, and no more than the work (in multiply-adds) is worth.
int worthwhile_threads(int threads, double multiply_adds);

// The tasks 0..count of a call, handed out in order to whoever asks.
class Tasks {
public:
    explicit Tasks(std::int64_t count) : count_(count) {}

    bool take(std::int64_t& task) { return (task = next_.fetch_add(1)) < count_; }
    bool left() const { return next_ < count_; }
    void drop() { next_ = count_; }

private:
    std::atomic<std::int64_t> next_{0};
    const std::int64_t count_;
};

// worker(tasks) on up to `threads` threads, each with memory of its own to take tasks with, until
// none is left. An exception of a worker is thrown again here.
void run_workers(std::int64_t tasks, int threads, const std::function<void(Tasks&)>& worker);

// body(task) for every task in 0..tasks.
void parallel_for(std::int64_t tasks, int threads,
                  const std::function<void(std::int64_t task)>& body);

}  // namespace divse
