// csrc/cuda/scores.h run by the emulated machine, as a function for Python (tests/test_hopper.py).
#include <algorithm>
#include <string>

#include "emulated_hopper.h"

#include "../../csrc/cuda/scores.h"

namespace divse::hopper {
namespace {

std::string failure;

template <typename T, int Size, int Factors>
void run_clusters(const Launch& to, int clusters, unsigned seed) {
    const Work work = work_of(to);
    const Map rows{static_cast<const char*>(to.row_values), rows_shape(to.rows)};
    const Map columns{static_cast<const char*>(to.column_values), columns_shape(to.columns)};
    for (int i = 0; i < clusters; ++i) {
        auto own = std::make_unique<Machine>(shared_bytes, i, clusters, seed + i);
        own->run([&] {
            run<T, Size, Factors>(&rows, &columns, work, own->shared(own->block()));
        });
    }
}

template <typename T, int Size>
void choose_factors(const Launch& to, int clusters, unsigned seed) {
    to.alpha <= alpha_of_four_factors ? run_clusters<T, Size, 4>(to, clusters, seed)
                                      : run_clusters<T, Size, 1>(to, clusters, seed);
}

template <typename T>
void choose_size(const Launch& to, int clusters, unsigned seed) {
    switch (to.rows.size) {
        case 2: return choose_factors<T, 2>(to, clusters, seed);
        case 4: return choose_factors<T, 4>(to, clusters, seed);
        case 8: return choose_factors<T, 8>(to, clusters, seed);
        case 16: return choose_factors<T, 16>(to, clusters, seed);
        case 32: return choose_factors<T, 32>(to, clusters, seed);
        default: throw std::invalid_argument("size");
    }
}

}  // namespace
}  // namespace divse::hopper

// `sides`: count, size, dims, stride of sets and of elements, of the rows and then the columns;
// then both strides of the scores. Returns what went wrong, or null.
extern "C" const char* emulate(const void* rows, const void* columns, bool half,
                               const std::int64_t* sides, float* scores, float alpha,
                               bool log_mean, int clusters, unsigned seed) {
    using namespace divse::hopper;
    const Sets row_sets{sides[0], sides[1], sides[2], sides[3], sides[4]};
    const Sets column_sets{sides[5], sides[6], sides[7], sides[8], sides[9]};
    const Launch to{rows,   columns,   half,      row_sets, column_sets, scores,
                    sides[10], sides[11], alpha, log_mean, nullptr};
    try {
        half ? choose_size<Half>(to, clusters, seed) : choose_size<Bfloat16>(to, clusters, seed);
    } catch (const std::exception& error) {
        failure = error.what();
        return failure.c_str();
    }
    return nullptr;
}
