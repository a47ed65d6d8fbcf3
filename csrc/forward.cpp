// Scores and search: which queries go together, and how the work is divided.
#include <algorithm>
#include <vector>

#include "parallel.h"
#include "similarity.h"
#include "topk.h"
#include "workspace.h"

namespace divse {

namespace {

struct Span {
    std::int64_t first, count;
    bool in_lanes;
};

// Full groups of `width` queries go in lanes, so do the last ones if they nearly fill a group;
// fewer go in rows, unless their cosines are kept. A packed block stays near L2. Depends on the
// shape of the queries alone.
std::vector<Span> query_spans(const Sets& queries, const Kernel& kernel, bool all_in_lanes) {
    constexpr std::int64_t block_bytes = 512 << 10;
    const std::int64_t width = kernel.width, rest = queries.count % width;
    const std::int64_t group_bytes = queries.elements * queries.dim * 4 * width;
    const std::int64_t in_a_tile = std::max<std::int64_t>(1, tile_vectors / queries.elements);
    const std::int64_t groups = std::clamp<std::int64_t>(block_bytes / group_bytes, 1, in_a_tile);
    const bool rest_in_lanes = all_in_lanes || 8 * rest >= 5 * width;
    const std::int64_t in_lanes = rest_in_lanes ? queries.count : queries.count - rest;
    std::vector<Span> spans;
    for (std::int64_t q = 0; q < in_lanes; q += groups * width) {
        spans.push_back({q, std::min(groups * width, in_lanes - q), true});
    }
    for (std::int64_t q = in_lanes; q < queries.count; q += in_a_tile) {
        spans.push_back({q, std::min(in_a_tile, queries.count - q), false});
    }
    return spans;
}

// One call. Its tasks are query spans x ranges of the gallery.
class Work {
public:
    Work(const Sets& queries, const Sets& gallery, const Similarity& similarity,
         const Kernel& kernel, int requested_threads, const Cosines& kept)
        : spans(query_spans(queries, kernel, kept.values != nullptr)), queries_(queries),
          gallery_(gallery), kernel_(kernel), kept_(kept),
          terms_(terms_of(similarity, std::max(queries.elements, gallery.elements))),
          threads_(worthwhile_threads(thread_count(requested_threads),
                                      multiply_adds(queries, gallery))) {
        const auto spans_count = static_cast<std::int64_t>(spans.size());
        const std::int64_t tasks = threads_ == 1 ? 1 : 8 * threads_;  // the threads' ends even out
        ranges = std::clamp<std::int64_t>((tasks + spans_count - 1) / spans_count, 1,
                                          (gallery.count + 63) / 64);
    }

    // visit(span index, range, first set, last set, score) where score(sets, n, end, out, stride)
    // computes sets n..end of (a selection of) the gallery; one call a task.
    template <class Visit>
    void run(const Visit& visit) const {
        const auto tasks = static_cast<std::int64_t>(spans.size()) * ranges;
        parallel_for(tasks, threads_, [&](std::int64_t task) {
            const std::int64_t index = task / ranges, range = task % ranges;
            const Span& span = spans[static_cast<std::size_t>(index)];
            const PackedQueries packed(queries_, span.first, span.count, span.in_lanes, kernel_);
            const QueryBlock& block = packed.block();
            const Workspace workspace(kernel_, span.in_lanes ? block.groups : span.count,
                                      queries_.elements, gallery_.elements, queries_.dim);
            const auto score = [&](const Sets& sets, std::int64_t n, std::int64_t end, float* out,
                                   std::int64_t stride) {
                kernel_.score(block, sets, n, end, terms_, out, stride, kept_,
                              workspace.scratch());
            };
            visit(index, range, border(range), border(range + 1), score);
        });
    }

    const std::vector<Span> spans;
    std::int64_t ranges;

private:
    std::int64_t border(std::int64_t range) const { return gallery_.count * range / ranges; }

    const Sets& queries_;
    const Sets& gallery_;
    const Kernel& kernel_;
    const Cosines kept_;
    const Terms terms_;
    const int threads_;
};

constexpr std::int64_t sets_at_once = 128;

// Sets first..last of the gallery without the excluded ones: begin..begin + count of `sets`.
struct Included {
    Included(const Sets& gallery, const std::uint8_t* excluded, std::int64_t first,
             std::int64_t last)
        : sets(gallery), begin(first), count(last - first) {
        if (!excluded) return;
        std::int64_t left = 0;
        for (std::int64_t n = first; n < last; ++n) {
            ids[left] = n;
            left += !(excluded[n >> 3] >> (n & 7) & 1);
        }
        if (left == count) return;
        sets.ids = ids;
        begin = 0;
        count = left;
    }
    Included(const Included&) = delete;

    void offer(const float* scores, TopK& top) const {
        if (!sets.ids) return top.offer(scores, count, begin);
        for (std::int64_t i = 0; i < count; ++i) top.offer({scores[i], ids[i]});
    }

    Sets sets;
    std::int64_t begin, count;
    std::int64_t ids[sets_at_once];
};

}  // namespace

void scores(const Sets& queries, const Sets& gallery, Similarity similarity, const Kernel& kernel,
            int threads, float* out, const Cosines& kept) {
    if (queries.count == 0 || gallery.count == 0) return;
    const Work work(queries, gallery, similarity, kernel, threads, kept);
    work.run([&](std::int64_t span, std::int64_t, std::int64_t first, std::int64_t last,
                 const auto& score) {
        const std::int64_t row = work.spans[static_cast<std::size_t>(span)].first;
        score(gallery, first, last, out + row * gallery.count + first, gallery.count);
    });
}

void search(const Sets& queries, const Sets& gallery, Similarity similarity, const Kernel& kernel,
            int threads, std::int64_t topk, const std::uint8_t* excluded, float* out_scores,
            std::int64_t* out_ids) {
    if (queries.count == 0) return;
    const Work work(queries, gallery, similarity, kernel, threads, {nullptr, 0});
    const auto ranges = static_cast<std::size_t>(work.ranges);
    // best[query][range]; every task fills its own.
    std::vector<TopK> best(static_cast<std::size_t>(queries.count) * ranges, TopK(topk));
    work.run([&](std::int64_t index, std::int64_t range, std::int64_t first, std::int64_t last,
                 const auto& score) {
        const Span& span = work.spans[static_cast<std::size_t>(index)];
        std::vector<float> buffer(static_cast<std::size_t>(span.count * sets_at_once));
        TopK* own = best.data() + static_cast<std::size_t>(span.first * work.ranges + range);
        for (std::int64_t n = first; n < last; n += sets_at_once) {
            const Included part(gallery, excluded, n, std::min(n + sets_at_once, last));
            score(part.sets, part.begin, part.begin + part.count, buffer.data(), sets_at_once);
            for (std::int64_t q = 0; q < span.count; ++q) {
                part.offer(buffer.data() + q * sets_at_once, own[q * work.ranges]);
            }
        }
    });
    for (std::int64_t q = 0; q < queries.count; ++q) {
        TopK* ranges_of_query = best.data() + static_cast<std::size_t>(q) * ranges;
        merge(ranges_of_query, ranges, topk, out_scores + q * topk, out_ids + q * topk);
    }
}

}  // namespace divse
