// Estimated scores of sets whose codes lie side by side (LaneCodes, int8.h). V is the register type
// of floats, I that of codes, which offers here, beside what int8_product.h names,
//   lane_elements: elements whose sums with `code_rows` rows stay in registers
//   Lanes, LaneQuery: sums of `width` sets, and lane_dims codes of one query row for all of them
//   start(sum of the query row's codes), load_lane_query, add_lanes, lane_floats
#pragma once

#include "int8_fold.h"
#include "int8_product.h"

namespace divse {

constexpr std::int64_t step_bytes = lane_sets * lane_dims;

// A few query rows, and where the codes and scales of a few elements of the sets in the lanes are.
struct LaneRows {
    const std::int8_t* codes;
    const float* scales;
    const std::int32_t* sums;
    std::int64_t stride;
};

struct LaneElements {
    const std::int8_t* codes;
    const float* scales;
    std::int64_t steps;  // of lane_dims; an element has `steps` of step_bytes
};

// Gives `take` the cosines [element][row] in registers, one set a lane.
template <class V, class I, int Elements, int Rows, class Take>
[[gnu::always_inline]] inline void multiply_lanes(const LaneRows& queries,
                                                  const LaneElements& sets, const Take& take) {
    typename I::Lanes sums[Elements * Rows];
#pragma GCC unroll 16
    for (int i = 0; i < Elements * Rows; ++i) sums[i] = I::start(queries.sums[i % Rows]);
    const std::int8_t* codes = sets.codes;
    for (std::int64_t d = 0; d < sets.steps; ++d, codes += step_bytes) {
        typename I::LaneQuery row[Rows];
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            row[r] = I::load_lane_query(queries.codes + r * queries.stride + d * lane_dims);
        }
#pragma GCC unroll 4
        for (int e = 0; e < Elements; ++e) {
            const std::int8_t* at = codes + e * sets.steps * step_bytes;
            __builtin_prefetch(at + fetched_ahead_codes, 0, codes_locality);
            I::template add_lanes<Rows>(sums + e * Rows, at, row);
        }
    }
    typename V::F cosines[Elements * Rows];
#pragma GCC unroll 4
    for (int e = 0; e < Elements; ++e) {
        const auto scale = V::load(sets.scales + e * lane_sets);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            const auto factor = V::mul(scale, V::broadcast(queries.scales[r]));
            cosines[e * Rows + r] = V::mul(factor, I::lane_floats(sums[e * Rows + r]));
        }
    }
    take(cosines);
}

template <int Value>
struct Size {
    static constexpr int value = Value;
};

// Scores `width` sets of a group, from `lane` on; `move` goes on to others of the same sizes.
template <class V, class I>
class LaneScorer {
public:
    LaneScorer(const CodeBlock& block, const LaneCodes& gallery, std::int64_t group, int lane,
               const Terms& terms, const CodeScratch& scratch)
        : block_(block), gallery_(gallery), terms_(terms), scratch_(scratch),
          steps_((gallery.dim + lane_dims - 1) / lane_dims),
          fold_(block, terms, scratch, lengths(gallery, group * lane_sets + lane)),
          exp2_(terms.scale) {
        move(group, lane);
    }

    void move(std::int64_t group, int lane) {
        const std::int64_t slot =
            gallery_.firsts ? gallery_.firsts[group] : group * gallery_.elements;
        codes_ = gallery_.codes + slot * steps_ * step_bytes + lane * lane_dims;
        scales_ = gallery_.scales + slot * lane_sets + lane;
    }

    void run(float* out, std::int64_t stride) const {
        const auto fill = [this](Range elements, Range rows) { store_cosines(elements, rows); };
        if (!fold_.is_uniform() || terms_.path == Path::shifted) {
            return fold_.run(out, stride, fill);
        }
        const bool sound = fold_.run_uniform(
            out, stride, exp2_, [this](std::int64_t q, const Sums& sums, auto combine) {
                add_cosines(q, sums, combine);
            });
        if (!sound) fold_.mend(out, stride, fill);
    }

private:
    // Lanes past the last set have the length of some set, and what they get is not read.
    const std::int64_t* lengths(const LaneCodes& gallery, std::int64_t first) {
        for (std::int64_t lane = 0; lane < V::width; ++lane) {
            const std::int64_t n = least(first + lane, gallery.count - 1);
            lengths_[lane] = gallery.lengths ? gallery.lengths[n] : gallery.elements;
        }
        return lengths_;
    }

    LaneRows rows_from(std::int64_t row) const {
        const CodeTerms& terms = block_.terms[0];
        return {block_.codes[0] + row * block_.padded_dim, terms.scales + row, terms.sums + row,
                block_.padded_dim};
    }

    LaneElements elements_from(std::int64_t j) const {
        return {codes_ + j * steps_ * step_bytes, scales_ + j * lane_sets, steps_};
    }

    // Calls `use` with the first of each block of elements, and how many it has.
    template <class Use>
    static void in_blocks(Range elements, const Use& use) {
        constexpr int most = I::lane_elements;
        std::int64_t j = elements.begin;
        for (; j + most <= elements.end; j += most) use(j, Size<most>{});
        for (; j < elements.end; ++j) use(j, Size<1>{});
    }

    template <class Combine>
    void add_cosines(std::int64_t q, const Sums& sums, Combine combine) const {
        const std::int64_t first = q * block_.elements, count = block_.counts[q];
        in_blocks({0, fold_.longest()}, [&](std::int64_t j, auto elements) {
            std::int64_t i = 0;
            for (; i + code_rows <= count; i += code_rows) {
                add_some<elements.value, code_rows>(j, first, i, sums, combine);
            }
            for (; i < count; ++i) add_some<elements.value, 1>(j, first, i, sums, combine);
        });
    }

    template <int Elements, int Rows, class Combine>
    void add_some(std::int64_t j, std::int64_t first, std::int64_t i, const Sums& sums,
                  Combine combine) const {
        multiply_lanes<V, I, Elements, Rows>(
            rows_from(first + i), elements_from(j), [&](const typename V::F* cosines) {
                add_block<V, Elements, Rows>(cosines, sums.a + j * V::width,
                                             sums.b + i * V::width, combine);
            });
    }

    void store_cosines(Range elements, Range rows) const {
        const std::int64_t height = tile_rows(rows);
        in_blocks(elements, [&](std::int64_t j, auto size) {
            float* tile = scratch_.cosines + (j - elements.begin) * height * V::width;
            for (std::int64_t i = rows.begin; i < rows.end; ++i, tile += V::width) {
                multiply_lanes<V, I, size.value, 1>(
                    rows_from(i), elements_from(j), [&](const typename V::F* cosines) {
                        for (int e = 0; e < size.value; ++e) {
                            V::store(tile + e * height * V::width, cosines[e]);
                        }
                    });
            }
        });
    }

    const CodeBlock& block_;
    const LaneCodes& gallery_;
    const Terms& terms_;
    const CodeScratch& scratch_;
    const std::int64_t steps_;
    std::int64_t lengths_[V::width];
    const CodeFold<V> fold_;
    const RoughExp2<V> exp2_;
    const std::int8_t* codes_;
    const float* scales_;
};

template <class V, class I>
void estimate_sets(const CodeBlock& block, const LaneCodes& gallery, std::int64_t first,
                   std::int64_t last, const Terms& terms, float* out, std::int64_t stride,
                   const CodeScratch& scratch) {
    LaneScorer<V, I> alike(block, gallery, first, 0, terms, scratch);
    for (std::int64_t group = first; group < last; ++group) {
        for (int lane = 0; lane < lane_sets; lane += V::width, out += V::width) {
            if (gallery.lengths) {
                LaneScorer<V, I>(block, gallery, group, lane, terms, scratch).run(out, stride);
            } else {
                alike.move(group, lane);
                alike.run(out, stride);
            }
        }
    }
}

}  // namespace divse
