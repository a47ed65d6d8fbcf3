// How the two sides lie in global memory, and which boxes of them are copied at a time.
//
// Rows: (D, sets, elements), a box for each warp. In shared memory it is [element][set]; of its 4
// groups of 8 rows each is a row of the warp's threads (fold.h), so that a block of 64 rows takes
// every second group.
// Columns: (D, 2, sets, elements / 2), a box for each block of a cluster. In shared memory it is
// [element / 2][set][element % 2], so that a thread finds two elements of a set in its two
// neighbouring columns and the others of that set further on.
#pragma once

#include <cstdint>

namespace divse::hopper {

constexpr int cluster = 2;  // blocks that share columns
constexpr int tile = 128;   // rows, and columns, of a warpgroup's tile
constexpr int depth = 64;   // dimensions of a stage: 128 bytes, as far as shared memory is swizzled
constexpr int value_bytes = 2;

struct Shape {
    int rank;
    std::uint64_t sizes[4];
    std::uint64_t strides[3];  // bytes, of all dimensions but the first
    std::uint32_t box[4];
};

// Sets of `size` elements of `dims` values; strides in values.
struct Sets {
    std::int64_t count, size, dims, set_stride, element_stride;
};

inline Shape rows_shape(const Sets& sets) {
    const auto u = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
    const auto warp_sets = static_cast<std::uint32_t>(32 / sets.size);
    return {3,
            {u(sets.dims), u(sets.count), u(sets.size), 1},
            {u(sets.set_stride * value_bytes), u(sets.element_stride * value_bytes), 0},
            {depth, warp_sets, static_cast<std::uint32_t>(sets.size), 1}};
}

inline Shape columns_shape(const Sets& sets) {
    const auto u = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
    const std::uint64_t element = u(sets.element_stride * value_bytes);
    const auto all = static_cast<std::uint32_t>(tile / sets.size);
    const auto pairs = static_cast<std::uint32_t>(sets.size / 2);
    return {4,
            {u(sets.dims), 2, u(sets.count), pairs},
            {element, u(sets.set_stride * value_bytes), 2 * element},
            {depth, 2, pairs == 1 ? all / cluster : all, pairs == 1 ? 1 : pairs / cluster}};
}

}  // namespace divse::hopper
