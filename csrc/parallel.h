// Threads of a call: the caller's own and helpers from a pool that all calls of the process share.
// A call never waits for a helper that has not come: one that finds its work done is not needed.
// Nothing is shared with the OpenMP pools of torch and faiss; a forked child begins a pool anew.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

namespace divse {

// `requested` if positive, else OMP_NUM_THREADS, else the CPUs this process may use.
int thread_count(int requested);

// At most `threads`, and no more than the work (in multiply-adds) is worth.
int worthwhile_threads(int threads, double multiply_adds);

// The tasks 0..count of a call, in as many runs as threads may come: a thread takes the tasks of a
// run of its own in order, so that what it fetched ahead is what comes next, and then helps with the
// runs of others, which may not have come.
class Tasks {
public:
    Tasks(std::int64_t count, int runs);

    // The next task for a thread whose own run is `run`.
    bool take(int run, std::int64_t& task);
    int next_run() { return arrived_++ % static_cast<int>(runs_.size()); }
    bool left() const;
    void drop();

private:
    struct alignas(64) Run {  // on a cache line of its own
        std::atomic<std::int64_t> next;
        std::int64_t end;
    };
    std::vector<Run> runs_;
    std::atomic<int> arrived_{0};
};

// What one thread takes its tasks from.
class OwnTasks {
public:
    explicit OwnTasks(Tasks& tasks) : tasks_(tasks), run_(tasks.next_run()) {}

    bool take(std::int64_t& task) { return tasks_.take(run_, task); }

private:
    Tasks& tasks_;
    const int run_;
};

// worker(tasks) on up to `threads` threads, each with memory of its own to take tasks with, until
// none is left. An exception of a worker is thrown again here.
void run_workers(std::int64_t tasks, int threads, const std::function<void(OwnTasks&)>& worker);

// body(task) for every task in 0..tasks.
void parallel_for(std::int64_t tasks, int threads,
                  const std::function<void(std::int64_t task)>& body);

}  // namespace divse
