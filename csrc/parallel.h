// Threads of one call: started for it and joined before it returns, so that calls from any number
// of Python threads, fork, and the OpenMP pools of torch and faiss have nothing to share.
#pragma once

#include <cstdint>
#include <functional>

namespace divse {

// `requested` if positive, else OMP_NUM_THREADS, else the CPUs this process may use.
int thread_count(int requested);

// At most `threads`, and no more than the work (in multiply-adds) is worth.
int worthwhile_threads(int threads, double multiply_adds);

// body(task) for every task in 0..tasks; tasks are handed out in order. An exception of a
// body is thrown again here.
void parallel_for(std::int64_t tasks, int threads,
                  const std::function<void(std::int64_t task)>& body);

}  // namespace divse
