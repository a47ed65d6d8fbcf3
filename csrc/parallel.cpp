#include "parallel.h"

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

namespace divse {

namespace {

// The core that a thread runs on. Where the kernel wakes a helper on the core of its caller, the two
// would take turns there while another core has nothing to do: a helper that finds itself so moves
// away. The cores that it may use are then those that it might use before.
class Core {
public:
#ifdef __linux__
    void leave() const {
        if (number_ < 0 || sched_getcpu() != number_) return;
        cpu_set_t all, others;
        if (sched_getaffinity(0, sizeof all, &all) != 0) return;
        others = all;
        CPU_CLR(number_, &others);
        if (CPU_COUNT(&others) == 0) return;
        if (sched_setaffinity(0, sizeof others, &others) == 0) {
            sched_setaffinity(0, sizeof all, &all);
        }
    }

private:
    const int number_ = sched_getcpu();
#else
    void leave() const {}
#endif
};

// Work that helpers may join: it lives on its caller's stack, and in the pool while helpers lack.
struct Job {
    const std::function<void()>& work;
    int wanted;      // helpers that may still come
    int inside = 0;  // helpers at work
    const Core callers{};
    std::condition_variable left{};

    Job(const std::function<void()>& work, int wanted) : work(work), wanted(wanted) {}
};

// Helpers that wait for jobs, and leave when none has come for a while.
class Pool {
public:
    // Never deleted: helpers may outlive whatever deletes objects at the end of a process.
    static Pool& shared() {
        Pool* pool = current_;
        if (pool) return *pool;
        Pool* fresh = new Pool;
        if (current_.compare_exchange_strong(pool, fresh)) return *fresh;
        delete fresh;
        return *pool;
    }

    void offer(Job& job) {
        const int wanted = job.wanted;
        std::unique_lock<std::mutex> lock(mutex_);
        jobs_.push_back(&job);
        wanted_ += wanted;
        try {
            for (; helpers_ - busy_ < wanted_; ++helpers_) {
                std::thread([this] { serve(); }).detach();
            }
        } catch (...) {
            // No more threads to be had: those that are there, and the caller, do all the work.
        }
        lock.unlock();  // or who is woken would wait for it
        for (int i = 0; i < wanted; ++i) come_.notify_one();
    }

    // Takes the job back, and waits for the helpers that have begun it.
    void withdraw(Job& job) {
        std::unique_lock<std::mutex> lock(mutex_);
        const auto place = std::find(jobs_.begin(), jobs_.end(), &job);
        if (place != jobs_.end()) {
            wanted_ -= job.wanted;
            jobs_.erase(place);
        }
        job.left.wait(lock, [&] { return job.inside == 0; });
    }

    // In a forked child, which has none of the helpers.
    static void forget() { current_ = nullptr; }

private:
    void serve() {
        constexpr auto patience = std::chrono::seconds(5);
        std::unique_lock<std::mutex> lock(mutex_);
        while (come_.wait_for(lock, patience, [this] { return !jobs_.empty(); })) {
            Job& job = *jobs_.front();
            if (--job.wanted == 0) jobs_.pop_front();
            --wanted_;
            ++busy_;
            ++job.inside;
            lock.unlock();
            job.callers.leave();
            job.work();
            lock.lock();
            --busy_;
            if (--job.inside == 0) job.left.notify_one();
        }
        --helpers_;
    }

    // Atomic rather than locked: a lock could be held by another thread when the process forks.
    static inline std::atomic<Pool*> current_{nullptr};

    std::mutex mutex_;
    std::condition_variable come_;
    std::deque<Job*> jobs_;
    int wanted_ = 0;   // helpers that the jobs wait for
    int helpers_ = 0;  // threads of this pool
    int busy_ = 0;     // of them at work
};

[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, Pool::forget);

}  // namespace

int thread_count(int requested) {
    if (requested > 0) return requested;
    if (const char* value = std::getenv("OMP_NUM_THREADS")) {
        const int threads = std::atoi(value);  // of a list "4,2" the outermost level counts
        if (threads > 0) return threads;
    }
    return std::max(1u, std::thread::hardware_concurrency());
}

int worthwhile_threads(int threads, double multiply_adds) {
    // To wake a thread takes some 20 us, about this many multiply-adds of one core.
    constexpr double worth_a_thread = 1e6;
    return static_cast<int>(std::clamp(multiply_adds / worth_a_thread, 1.0, double(threads)));
}

Tasks::Tasks(std::int64_t count, int runs) : runs_(static_cast<std::size_t>(runs)) {
    for (int i = 0; i < runs; ++i) {
        Run& run = runs_[static_cast<std::size_t>(i)];
        run.next = count * i / runs;
        run.end = count * (i + 1) / runs;
    }
}

bool Tasks::take(int run, std::int64_t& task) {
    const std::size_t runs = runs_.size();
    for (std::size_t i = 0, at = static_cast<std::size_t>(run); i < runs; ++i) {
        if ((task = runs_[at].next.fetch_add(1)) < runs_[at].end) return true;
        at = at + 1 == runs ? 0 : at + 1;
    }
    return false;
}

bool Tasks::left() const {
    return std::any_of(runs_.begin(), runs_.end(),
                       [](const Run& run) { return run.next < run.end; });
}

void Tasks::drop() {
    for (Run& run : runs_) run.next = run.end;
}

void run_workers(std::int64_t count, int threads, const std::function<void(OwnTasks&)>& worker) {
    const auto most = static_cast<int>(std::clamp<std::int64_t>(count, 1, threads));
    Tasks tasks(count, most);
    std::exception_ptr failure;
    std::mutex failing;
    const std::function<void()> work = [&] {
        try {
            if (!tasks.left()) return;
            OwnTasks own(tasks);
            worker(own);
        } catch (...) {
            tasks.drop();
            const std::lock_guard<std::mutex> lock(failing);
            failure = std::current_exception();
        }
    };
    if (most == 1) {
        work();
    } else {
        Job job(work, most - 1);
        Pool& pool = Pool::shared();
        pool.offer(job);
        work();
        pool.withdraw(job);
    }
    if (failure) std::rethrow_exception(failure);
}

void parallel_for(std::int64_t tasks, int threads,
                  const std::function<void(std::int64_t)>& body) {
    run_workers(tasks, threads, [&](OwnTasks& left) {
        for (std::int64_t task; left.take(task);) body(task);
    });
}

}  // namespace divse
