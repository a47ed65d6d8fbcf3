// Search by what the codes say, without bounds and without the embeddings.
#include <algorithm>
#include <mutex>

#include "int8_queries.h"
#include "parallel.h"
#include "topk.h"

namespace divse {

namespace {

using Index = std::int64_t;

// What all threads found for the queries of one block.
struct Best {
    std::mutex mutex;
    std::vector<TopK> tops;
};

class Scan {
public:
    Scan(const CodeBlock& block, const LaneCodes& gallery, const Int8Kernel& kernel,
         const Terms& terms, const std::uint8_t* excluded, Index topk)
        : block_(block), gallery_(gallery), kernel_(kernel), terms_(terms), excluded_(excluded),
          workspace_(kernel, block.count, block.elements, gallery.elements),
          scores_(static_cast<std::size_t>(block.count * stride)),
          own_(static_cast<std::size_t>(block.count), TopK(topk)) {}

    void run(Index first_group, Index last_group) {
        for (Index group = first_group; group < last_group; group += groups_at_once) {
            const Index end = std::min(group + groups_at_once, last_group);
            kernel_.estimate(block_, gallery_, group, end, terms_, scores_.data(), stride,
                             workspace_.scratch());
            const Index n = group * lane_sets, count = std::min(end * lane_sets, gallery_.count) - n;
            for (Index q = 0; q < block_.count; ++q) {
                offer(scores_.data() + q * stride, n, count, own_[std::size_t(q)]);
            }
        }
    }

    void end(Best& best) {
        const std::lock_guard<std::mutex> lock(best.mutex);
        for (std::size_t q = 0; q < own_.size(); ++q) best.tops[q].take_from(own_[q]);
    }

private:
    void offer(const float* scores, Index first, Index count, TopK& top) const {
        if (!excluded_) return top.offer(scores, count, first);
        for (Index n = first; n < first + count; ++n) {
            if (!(excluded_[n >> 3] >> (n & 7) & 1)) top.offer(scores + (n - first), 1, n);
        }
    }

    static constexpr Index groups_at_once = 16, stride = groups_at_once * lane_sets;

    const CodeBlock& block_;
    const LaneCodes& gallery_;
    const Int8Kernel& kernel_;
    const Terms& terms_;
    const std::uint8_t* excluded_;
    const CodeWorkspace workspace_;
    std::vector<float> scores_;
    std::vector<TopK> own_;
};

}  // namespace

void int8_search(const Sets& queries, const LaneCodes& codes, Similarity similarity,
                 const Int8Kernel& kernel, int threads, Index topk, const std::uint8_t* excluded,
                 bool ordered, float* scores, Index* ids) {
    constexpr double codes_a_float = 4;
    const Terms terms = terms_of(similarity, std::max(queries.elements, codes.elements));
    const Index most = std::max<Index>(1, tile_vectors / queries.elements);
    const Index groups = (codes.count + lane_sets - 1) / lane_sets;
    for (Index first = 0; first < queries.count; first += most) {
        const Index count = std::min(most, queries.count - first);
        const double work = double(count * queries.elements) * double(codes.count) *
                            double(codes.elements * codes.dim) / codes_a_float;
        const int workers = worthwhile_threads(thread_count(threads), work);
        const Index ranges = workers == 1 ? 1 : std::min<Index>(groups, 32 * workers);
        const CodedQueries coded(queries, first, count, similarity, codes.elements, kernel);
        Best best;
        best.tops.resize(static_cast<std::size_t>(count), TopK(topk));
        run_workers(ranges, workers, [&](OwnTasks& left) {
            Scan scan(coded.block(), codes, kernel, terms, excluded, topk);
            for (Index range; left.take(range);) {
                scan.run(groups * range / ranges, groups * (range + 1) / ranges);
            }
            scan.end(best);
        });
        for (Index q = 0; q < count; ++q) {
            const Index row = (first + q) * topk;
            best.tops[static_cast<std::size_t>(q)].write(scores + row, ids + row, ordered);
        }
    }
}

}  // namespace divse
