// Smooth-Chamfer scores of all pairs of sets of `Size` elements, by three warpgroups: one thread of
// the first copies tiles of elements to shared memory, and the other two take turns, one with the
// tensor cores while the other folds the tile it has multiplied. So the fold is hidden, as long as
// it takes no more time than a product; Triton's kernel does one after the other.
//
// Two blocks, a cluster, have neighbouring tiles of rows and the same columns, half of which each
// copies for both: a block then reads no more than with a tile of twice as many columns. Blocks go
// from tile to tile, and copies run ahead of the products through `stages` stages.
//
// Sets of fewer than 2 or more than 32 elements, or of a number of elements that is no power of two,
// ragged sets, other similarities and gradients are the Triton kernels' work.
#pragma once

#include "fold.h"
#include "launch.h"

namespace divse::hopper {

constexpr int threads = 384, stages = 6;
constexpr int row_bytes = value_bytes * depth, side_bytes = tile * row_bytes;
constexpr int stage_bytes = 2 * side_bytes;
constexpr int group_bytes = 8 * row_bytes;  // 8 rows, the unit of operands
constexpr int alignment = 1024;
constexpr int shared_bytes = alignment + stages * (stage_bytes + 2 * sizeof(Barrier));
constexpr int column_group = 32;  // tiles of columns that stay in the second cache

struct Place {
    int row, column;
};

// Tiles of few columns first, row by row: their elements stay in the cache while rows stream.
DIVSE_DEVICE Place place(int number, const Work& work) {
    const int of_group = column_group * work.row_tiles;
    const int group = number / of_group, within = number % of_group;
    const int left = work.column_tiles - group * column_group;
    const int columns = left < column_group ? left : column_group;
    return {within / columns, group * column_group + within % columns};
}

// The stages: where operands are, which copies have arrived, which products are done with them.
class Stages {
public:
    DIVSE_DEVICE explicit Stages(char* shared)
        : operands_(shared), full_(reinterpret_cast<Barrier*>(shared + stages * stage_bytes)),
          empty_(full_ + stages) {}

    DIVSE_DEVICE void start() {
        for (int i = 0; i < stages; ++i) {
            hopper::start(full_ + i, 1);
            // The warps of one warpgroup of each block: half of the columns comes from each.
            hopper::start(empty_ + i, 4 * cluster);
        }
        publish_barriers();
    }

    DIVSE_DEVICE char* rows(unsigned step) const {
        return operands_ + step % unsigned{stages} * stage_bytes;
    }
    DIVSE_DEVICE char* columns(unsigned step) const { return rows(step) + side_bytes; }
    DIVSE_DEVICE Barrier* full(unsigned step) const { return full_ + step % unsigned{stages}; }

    // Parity of the phase in which the stage is filled for this step.
    DIVSE_DEVICE static int parity(unsigned step) {
        return static_cast<int>(step / unsigned{stages} & 1);
    }

    DIVSE_DEVICE void wait_until_full(unsigned step) const { wait(full(step), parity(step)); }
    DIVSE_DEVICE void wait_until_empty(unsigned step) const {
        wait(empty_ + step % unsigned{stages}, parity(step) ^ 1);
    }

    // Called by all threads of a warpgroup once their products with this stage are done.
    DIVSE_DEVICE void release(unsigned step) const {
        const int lane = thread() % 32;
        if (lane < cluster) arrive(empty_ + step % unsigned{stages}, lane);
    }

private:
    char* operands_;
    Barrier *full_, *empty_;
};

// The thread that copies, tile by tile, for both warpgroups.
template <int Size>
DIVSE_DEVICE void copy_tiles(const Map* rows, const Map* columns, const Work& work,
                             const Stages& to) {
    using L = Layout<Size>;
    const std::uint16_t everyone = (1 << cluster) - 1;
    const int half = rank();
    unsigned step = 0;
    for (int i = cluster_index(); i < work.row_tiles * work.column_tiles; i += cluster_count()) {
        const Place at = place(i, work);
        const int row_set = (at.row * cluster + rank()) * L::sets;
        int column_set = at.column * L::sets, pair = 0;
        if (Size == 2) {
            column_set += half * (L::sets / cluster);
        } else {
            pair = half * (Size / 2 / cluster);
        }
#pragma unroll 1
        for (int block = 0; block < work.blocks; ++block, ++step) {
            to.wait_until_empty(step);
            Barrier* full = to.full(step);
            expect(full, stage_bytes);
#pragma unroll
            for (int warp = 0; warp < 4; ++warp) {
                copy(to.rows(step) + warp * (side_bytes / 4), rows, full, block * depth,
                     row_set + warp * L::warp_sets, 0);
            }
            copy_to_all(to.columns(step) + half * (side_bytes / cluster), columns, full,
                        block * depth, 0, column_set, pair, everyone);
        }
    }
}

template <typename T>
DIVSE_DEVICE void multiply_stage(float (&cosines)[2][64], const Stages& stages_, unsigned step,
                                 bool first) {
#pragma unroll
    for (int k = 0; k < depth / 16; ++k) {
        const std::uint64_t b = operand(stages_.columns(step) + 32 * k, group_bytes);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const char* a = stages_.rows(step) + m * group_bytes + 32 * k;
            multiply<T>(cosines[m], operand(a, 2 * group_bytes), b, !(first && k == 0));
        }
    }
}

template <int Size>
DIVSE_DEVICE void store(const Work& work, const Place& at, int set, int s, float logs) {
    using L = Layout<Size>;
    const int lane = thread() % 32, warp = thread() % 128 / 32, group = lane / 4;
    const int own = Size < 4 ? 8 * set + group : group % L::warp_sets;
    const int row = (at.row * cluster + rank()) * L::sets + warp * L::warp_sets + own;
    const int column = at.column * L::sets + 4 * s + lane % 4;
    if (row < work.row_sets && column < work.column_sets) {
        work.scores[row * work.row_stride + column * work.column_stride] =
            work.weight * logs + work.shift;
    }
}

template <typename T, int Size, int Factors>
DIVSE_DEVICE void score_tiles(int warpgroup, const Work& work, const Stages& from) {
    const int tiles = work.row_tiles * work.column_tiles, stride = cluster_count();
    unsigned step = warpgroup * work.blocks;
    if (warpgroup == 1) pass_turn(0);
    for (int i = cluster_index() + warpgroup * stride; i < tiles; i += 2 * stride) {
        float cosines[2][64];
        wait_for_turn(warpgroup);
#pragma unroll 1
        for (int block = 0; block < work.blocks; ++block, ++step) {
            from.wait_until_full(step);
            begin_products();
            multiply_stage<T>(cosines, from, step, block == 0);
            commit_products();
            if (block > 0) {
                wait_for_products<1>();
                from.release(step - 1);
            }
        }
        if (i + stride < tiles) pass_turn(1 - warpgroup);
        wait_for_products<0>();
        settle(cosines);
        from.release(step - 1);
        step += work.blocks;  // those of the other warpgroup
        const Place at = place(i, work);
        fold<Size, Factors>(cosines, work.scale, [&](int set, int s, float logs) {
            if ((thread() & Layout<Size>::alike) == 0) store<Size>(work, at, set, s, logs);
        });
    }
}

// The whole program of a thread; `shared` has shared_bytes.
template <typename T, int Size, int Factors>
DIVSE_DEVICE void run(const Map* rows, const Map* columns, const Work& work, char* shared) {
    Stages all(shared + (alignment - address(shared) % alignment) % alignment);
    if (thread() == 0) {
        prefetch(rows);
        prefetch(columns);
        all.start();
    }
    meet_cluster();
    if (thread() < 128) {
        fewer_registers<40>();
        if (thread() == 0) copy_tiles<Size>(rows, columns, work, all);
    } else {
        more_registers<232>();
        score_tiles<T, Size, Factors>(thread() / 128 - 1, work, all);
    }
    meet_cluster();  // no block leaves while another may still write to its memory
}

}  // namespace divse::hopper
