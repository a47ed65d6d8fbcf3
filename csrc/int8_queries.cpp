#include "int8_queries.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "sets_access.h"

namespace divse {

namespace {

constexpr double unit_roundoff = 0x1p-24;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// To fp32, never below; a little more pays for the few roundings of what it is used in.
float up(double value) {
    return std::nextafter(static_cast<float>(value * (1 + 8 * unit_roundoff)),
                          std::numeric_limits<float>::infinity());
}

// What the codes leave of `values`; returns its norm, never below the exact one.
double subtract(double* values, std::int64_t dim, float scale, const std::int8_t* codes) {
    double square = 0;
    for (std::int64_t d = 0; d < dim; ++d) {
        values[d] -= static_cast<double>(scale) * codes[d];
        square += values[d] * values[d];
    }
    return std::sqrt(square) * (1 + 0x1p-36);
}

double cosine_slack(std::int64_t dim, double norm) {
    return 4 * double(dim + 8) * unit_roundoff * norm * unit_bound;
}

}  // namespace

CodedQueries::CodedQueries(const Sets& queries, std::int64_t first, std::int64_t count,
                           const Similarity& similarity, std::int64_t gallery_elements,
                           const Int8Kernel& kernel)
    : block_{first, count, queries.elements, queries.dim, round_up(queries.dim, code_padding),
             nullptr, nullptr, {}, {}, {}},
      parts_{Part(count * queries.elements + code_rows, block_.padded_dim),
             Part(count * queries.elements + code_rows, block_.padded_dim)},
      norms_(static_cast<std::size_t>(count * queries.elements)) {
    for (std::int64_t q = 0; q < count; ++q) {
        const std::int64_t length = length_of(queries, first + q);
        double norm = 0;
        for (std::int64_t k = 0; k < length; ++k) {
            const std::int64_t row = q * queries.elements + k;
            encode(static_cast<const float*>(element_of(queries, first + q, k)), row, kernel);
            const double own = norms_[static_cast<std::size_t>(row)];
            norm = own <= norm ? norm : own;  // NaN stays
        }
        counts_.push_back(length);
        allow(q, norm, similarity, gallery_elements);
    }
    block_.counts = counts_.data();
    block_.margins = margins_.data();
    for (int i = 0; i < 2; ++i) {
        Part& part = parts_[i];
        block_.codes[i] = part.codes;
        block_.wide[i] = part.wide;
        block_.terms[i] = {part.scales.data(), part.weights.data(), part.constants.data(),
                           part.sums.data()};
    }
}

CodedQueries::Part::Part(std::int64_t rows, std::int64_t bytes)
    : bytes(bytes), memory(rows * bytes / 4), wide_memory(rows * bytes / 2),
      codes(reinterpret_cast<std::int8_t*>(memory.data())),
      wide(reinterpret_cast<std::int16_t*>(wide_memory.data())) {
    std::memset(codes, 0, static_cast<std::size_t>(rows * bytes));
    std::memset(wide, 0, static_cast<std::size_t>(rows * bytes) * sizeof *wide);
    for (auto* values : {&scales, &weights, &constants}) {
        values->resize(static_cast<std::size_t>(rows));
    }
    sums.resize(static_cast<std::size_t>(rows));
}

void CodedQueries::encode(const float* element, std::int64_t row, const Int8Kernel& kernel) {
    const std::int64_t dim = block_.dim;
    const auto at = static_cast<std::size_t>(row);
    std::vector<double> left(element, element + dim);
    std::vector<float> values(element, element + dim);
    double square = 0;
    for (const double x : left) square += x * x;
    const double norm = std::sqrt(square) * (1 + 0x1p-36);
    norms_[at] = norm;
    for (Part& part : parts_) {
        std::int8_t* codes = part.row(row);
        float ignored;
        kernel.encode(values.data(), Element::f32, dim, std::numeric_limits<double>::infinity(),
                      values.data(), codes, &part.scales[at], &ignored);
        const double rest = subtract(left.data(), dim, part.scales[at], codes);
        part.weights[at] = up(norm + rest);
        part.constants[at] = up(rest * unit_bound + cosine_slack(dim, norm));
        for (std::int64_t d = 0; d < dim; ++d) part.sums[at] += codes[d];
        std::copy_n(codes, dim, part.wide + row * part.bytes);
        std::copy(left.begin(), left.end(), values.begin());
    }
}

void CodedQueries::allow(std::int64_t q, double norm, const Similarity& similarity,
                         std::int64_t gallery_elements) {
    const double k = double(counts_[static_cast<std::size_t>(q)]), l = double(gallery_elements);
    const bool smooth = similarity.measure == Measure::smooth_chamfer;
    const double cosines = similarity.measure == Measure::maxsim_sum ? k : 1;  // that add up
    const double logarithms = smooth ? (1 + std::log(k) + std::log(l)) / similarity.alpha : 0;
    const double size = cosines * norm * unit_bound + logarithms;
    const double margin = 32 * unit_roundoff * (k + l + 8) * size;
    margins_.push_back(up(margin));
    disagreements_.push_back(up(margin + 2 * cosines * cosine_slack(block_.dim, norm)));
}

CodeBlock CodedQueries::query(std::int64_t q) const {
    CodeBlock own = block_;
    own.first += q;
    own.count = 1;
    own.counts += q;
    own.margins += q;
    const std::int64_t row = q * own.elements;
    for (int i = 0; i < 2; ++i) {
        CodeTerms& terms = own.terms[i];
        own.codes[i] += row * own.padded_dim;
        own.wide[i] += row * own.padded_dim;
        terms = {terms.scales + row, terms.weights + row, terms.constants + row, terms.sums + row};
    }
    return own;
}

CodeWorkspace::CodeWorkspace(const Int8Kernel& kernel, std::int64_t queries,
                             std::int64_t query_elements, std::int64_t gallery_elements)
    : dots_{Floats(std::int64_t{tile_vectors} * tile_elements * kernel.width),
            Floats(std::int64_t{tile_vectors} * tile_elements * kernel.width)},
      cosines_(std::int64_t{tile_vectors} * tile_elements * kernel.width),
      sums_(queries * 2 * (query_elements + gallery_elements) * kernel.width),
      scalars_(2 * tile_elements * kernel.width),
      starts_(static_cast<std::size_t>(tile_elements * kernel.width)),
      places_(static_cast<std::size_t>(tile_elements * kernel.width)) {
    scratch_ = {{reinterpret_cast<std::int32_t*>(dots_[0].data()),
                 reinterpret_cast<std::int32_t*>(dots_[1].data())},
                cosines_.data(),
                sums_.data(),
                scalars_.data(),
                scalars_.data() + tile_elements * kernel.width,
                starts_.data(),
                places_.data()};
}

}  // namespace divse
