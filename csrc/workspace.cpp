#include "workspace.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "sets_access.h"

namespace divse {

namespace {

constexpr std::align_val_t alignment{64};

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Floats of a block: lanes pad the last panel; rows pad D, and three rows that dot_rows may read.
std::int64_t packed_size(const QueryBlock& block, const Kernel& kernel) {
    if (!block.in_lanes) return (block.count * block.elements + 3) * block.padded_dim;
    const std::int64_t vectors = round_up(block.groups * block.elements, kernel.panel);
    return vectors * kernel.width * block.dim;
}

QueryBlock describe(const Sets& queries, std::int64_t first, std::int64_t count, bool in_lanes,
                    const Kernel& kernel, bool of_queries) {
    const std::int64_t groups = (count + kernel.width - 1) / kernel.width;
    return {in_lanes,    first,   count,   groups, queries.elements, queries.dim,
            round_up(queries.dim, kernel.width), nullptr, nullptr, nullptr, nullptr, of_queries};
}

}  // namespace

Floats::Floats(std::int64_t count)
    : memory_(static_cast<float*>(
          ::operator new(static_cast<std::size_t>(count) * sizeof(float), alignment))) {}

void Floats::Free::operator()(float* memory) const { ::operator delete(memory, alignment); }

const float* element_at(const Sets& sets, std::int64_t n, std::int64_t k) {
    return static_cast<const float*>(element_of(sets, n, k));
}

double multiply_adds(const Sets& queries, const Sets& gallery) {
    return double(queries.count) * double(queries.elements) * double(gallery.count) *
           double(gallery.elements) * double(queries.dim);
}

Terms terms_of(const Similarity& similarity, std::int64_t largest_set) {
    if (similarity.measure != Measure::smooth_chamfer) {
        return {similarity.measure, Path::maxima, 1.0f, false};
    }
    const double alpha = similarity.alpha;
    const double reach = 1.01 * alpha + std::log(static_cast<double>(largest_set));
    const bool shifted = alpha < 1 || alpha > 80 || reach > 88;
    return {similarity.measure, shifted ? Path::shifted : Path::sums,
            static_cast<float>(alpha * 1.4426950408889634), similarity.log_mean};
}

PackedQueries::PackedQueries(const Sets& queries, std::int64_t first, std::int64_t count,
                             bool in_lanes, const Kernel& kernel, bool of_queries)
    : block_(describe(queries, first, count, in_lanes, kernel, of_queries)),
      values_(packed_size(block_, kernel)) {
    const std::size_t floats = static_cast<std::size_t>(packed_size(block_, kernel));
    std::memset(values_.data(), 0, floats * sizeof(float));
    if (in_lanes) {
        pack_lanes(queries, kernel);
    } else {
        pack_rows(queries);
    }
    block_.values = values_.data();
    if (!in_lanes) pack_columns(kernel);
    block_.lengths = lengths_.data();
    block_.counts = counts_.data();
}

void PackedQueries::pack_lanes(const Sets& queries, const Kernel& kernel) {
    const std::int64_t width = kernel.width, panel = kernel.panel, dim = block_.dim;
    lengths_.assign(static_cast<std::size_t>(block_.groups * width), 1.0f);
    for (std::int64_t q = 0; q < block_.count; ++q) {
        const std::int64_t length = length_of(queries, block_.first + q), lane = q % width;
        lengths_[static_cast<std::size_t>(q)] = static_cast<float>(length);
        for (std::int64_t k = 0; k < length; ++k) {
            const std::int64_t vector = q / width * block_.elements + k;
            const float* from = element_at(queries, block_.first + q, k);
            float* to = values_.data() + vector / panel * panel * width * dim +
                        vector % panel * width + lane;
            for (std::int64_t d = 0; d < dim; ++d) to[d * panel * width] = from[d];
        }
    }
}

void PackedQueries::pack_rows(const Sets& queries) {
    for (std::int64_t q = 0; q < block_.count; ++q) {
        const std::int64_t length = length_of(queries, block_.first + q);
        counts_.push_back(length);
        for (std::int64_t k = 0; k < length; ++k) {
            float* to = values_.data() + (q * block_.elements + k) * block_.padded_dim;
            std::copy_n(element_at(queries, block_.first + q, k), block_.dim, to);
        }
    }
}

// Rows in lanes cost a scattered store a cosine, and save most loads of the products.
void PackedQueries::pack_columns(const Kernel& kernel) {
    const std::int64_t rows = block_.count * block_.elements, width = kernel.width;
    if (rows < 2 * width || 4 * rows < 3 * round_up(rows, width)) return;
    const std::int64_t step = kernel.panel * width, floats = round_up(rows, step) * block_.dim;
    columns_ = std::make_unique<Floats>(floats);
    std::memset(columns_->data(), 0, static_cast<std::size_t>(floats) * sizeof(float));
    for (std::int64_t row = 0; row < rows; ++row) {
        const float* from = values_.data() + row * block_.padded_dim;
        float* to = columns_->data() + row / step * step * block_.dim + row % step;
        for (std::int64_t d = 0; d < block_.dim; ++d) to[d * step] = from[d];
    }
    block_.columns = columns_->data();
}

Workspace::Workspace(const Kernel& kernel, std::int64_t groups, std::int64_t query_elements,
                     std::int64_t gallery_elements, std::int64_t dim)
    : tile_(std::int64_t{tile_vectors} * tile_elements * kernel.width),
      sums_(groups * 2 * (query_elements + gallery_elements) * kernel.width),
      widened_(tile_elements * dim), products_(std::int64_t{tile_elements} * tile_vectors),
      rows_(static_cast<std::size_t>(tile_elements * kernel.width + row_padding)),
      places_(static_cast<std::size_t>(tile_elements * kernel.width)),
      scratch_{tile_.data(),     sums_.data(), widened_.data(),
               products_.data(), rows_.data(), places_.data()} {}

}  // namespace divse
