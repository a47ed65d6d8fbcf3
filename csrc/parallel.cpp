#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace divse {

int thread_count(int requested) {
    if (requested > 0) return requested;
    if (const char* value = std::getenv("OMP_NUM_THREADS")) {
        const int threads = std::atoi(value);  // of a list "4,2" the outermost level counts
        if (threads > 0) return threads;
    }
    return std::max(1u, std::thread::hardware_concurrency());
}

int worthwhile_threads(int threads, double multiply_adds) {
    // Starting and joining a thread takes some 30 us, about this many multiply-adds of one core.
    constexpr double worth_a_thread = 1e6;
    return static_cast<int>(std::clamp(multiply_adds / worth_a_thread, 1.0, double(threads)));
}

void parallel_for(std::int64_t tasks, int threads,
                  const std::function<void(std::int64_t)>& body) {
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    const auto work = [&] {
        try {
            for (std::int64_t task; (task = next.fetch_add(1)) < tasks;) body(task);
        } catch (...) {
            next = tasks;
            const std::lock_guard<std::mutex> lock(failing);
            failure = std::current_exception();
        }
    };
    const int helpers = static_cast<int>(std::min<std::int64_t>(threads, tasks)) - 1;
    std::vector<std::thread> started;
    try {
        started.reserve(std::max(helpers, 0));
        for (int i = 0; i < helpers; ++i) started.emplace_back(work);
    } catch (...) {
        // No more threads to be had: those that run, and this one, do all the work.
    }
    work();
    for (std::thread& thread : started) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace divse
