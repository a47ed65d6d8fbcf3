// Searches sets of embeddings without Python, for architectures that tests reach only by emulation:
// exact scores against float64, and certified int8 against exact scores, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "dispatch.h"
#include "int8_kernel.h"
#include "similarity.h"

using namespace divse;

#ifdef __aarch64__
using Float16 = __fp16;  // GCC 12 knows _Float16 in C alone there
#else
using Float16 = _Float16;
#endif

constexpr std::int64_t queries = 3, sets = 200, elements = 4, dim = 37, topk = 10;
constexpr double alpha = 16;

std::vector<float> unit_vectors(std::int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(count * dim));
    for (auto at = values.begin(); at != values.end(); at += dim) {
        double square = 0;
        for (std::int64_t d = 0; d < dim; ++d) square += double(at[d] = normal(random)) * at[d];
        for (std::int64_t d = 0; d < dim; ++d) at[d] /= static_cast<float>(std::sqrt(square));
    }
    return values;
}

template <class T>
double smooth_chamfer(const float* query, const T* set) {
    double rows[elements] = {}, columns[elements] = {}, both = 0;
    for (std::int64_t i = 0; i < elements; ++i) {
        for (std::int64_t j = 0; j < elements; ++j) {
            double cosine = 0;
            for (std::int64_t d = 0; d < dim; ++d) {
                cosine += double(query[i * dim + d]) * double(set[j * dim + d]);
            }
            rows[i] += std::exp(alpha * cosine);
            columns[j] += std::exp(alpha * cosine);
        }
    }
    for (std::int64_t i = 0; i < elements; ++i) both += std::log(rows[i]) + std::log(columns[i]);
    return both / (2 * alpha * elements);
}

template <class T>
bool searches(Element type) {
    const std::vector<float> asked = unit_vectors(queries * elements, 1);
    const std::vector<float> wide = unit_vectors(sets * elements, 2);
    const std::vector<T> stored(wide.begin(), wide.end());
    const auto view = [](const void* values, Element element, std::int64_t count) {
        return Sets{values, element, count, elements, dim, elements * dim, dim, nullptr, nullptr,
                    nullptr};
    };
    const Sets q = view(asked.data(), Element::f32, queries);
    const Sets g = view(stored.data(), type, sets);
    const Similarity similarity{Measure::smooth_chamfer, alpha, false};
    const Kernel& kernel = *find_kernel("auto");
    std::vector<float> scores(queries * topk), proven(queries * topk);
    std::vector<std::int64_t> ids(queries * topk), proven_ids(queries * topk), survivors(queries);
    search(q, g, similarity, kernel, 2, topk, nullptr, scores.data(), ids.data());

    std::vector<std::int8_t> codes(sets * elements * dim);
    std::vector<float> scales(sets * elements), residuals(sets * elements);
    const Int8Kernel& int8 = int8_kernel(kernel);
    encode(g, int8, 2, codes.data(), scales.data(), residuals.data());
    const Codes coded{codes.data(), scales.data(), residuals.data(), sets, elements, dim, nullptr,
                      nullptr};
    certified_search(q, g, coded, similarity, kernel, int8, 2, topk, nullptr,
                     {proven.data(), proven_ids.data(), survivors.data()});
    if (scores != proven || ids != proven_ids) return false;

    for (std::int64_t b = 0; b < queries; ++b) {
        std::vector<double> exact;
        for (std::int64_t n = 0; n < sets; ++n) {
            exact.push_back(smooth_chamfer(asked.data() + b * elements * dim,
                                           stored.data() + n * elements * dim));
        }
        std::vector<double> best = exact;
        std::sort(best.rbegin(), best.rend());
        for (std::size_t i = 0; i < topk; ++i) {
            const std::size_t at = static_cast<std::size_t>(b) * topk + i;
            const double own = exact[static_cast<std::size_t>(ids[at])];
            const double error = std::max(std::abs(scores[at] - own), std::abs(best[i] - own));
            if (!(error < 1e-6)) return false;
        }
    }
    std::printf("%s: %lld of %lld sets scored exactly\n", kernel.name,
                static_cast<long long>(survivors[0]), static_cast<long long>(sets));
    return true;
}

int main() {
    return searches<float>(Element::f32) && searches<Float16>(Element::f16) ? 0 : 1;
}
