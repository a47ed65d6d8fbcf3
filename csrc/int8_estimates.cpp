// Search by what the codes say, without bounds and without the embeddings.
#include <algorithm>
#include <mutex>

#include "int8_queries.h"
#include "parallel.h"
#include "topk.h"

namespace divse {

namespace {

using Index = std::int64_t;

// The queries' first part with no error to allow for: what the kernel returns is the score itself.
class Estimated {
public:
    explicit Estimated(const CodedQueries& queries)
        : none_(static_cast<std::size_t>(queries.block().count * queries.block().elements)),
          block_(queries.block()) {
        block_.margins = none_.data();
        block_.terms[0].weights = block_.terms[0].constants = none_.data();
    }
    const CodeBlock& block() const { return block_; }

private:
    const std::vector<float> none_;
    CodeBlock block_;
};

// What all threads found for the queries of one block.
struct Best {
    std::mutex mutex;
    std::vector<TopK> tops;
};

class Scan {
public:
    Scan(const CodeBlock& block, const Codes& gallery, const Int8Kernel& kernel, const Terms& terms,
         const std::uint8_t* excluded, Index topk)
        : block_(block), gallery_(gallery), kernel_(kernel), terms_(terms), excluded_(excluded),
          workspace_(kernel, block.count, block.elements, gallery.elements),
          scores_(static_cast<std::size_t>(block.count * kernel.width)),
          own_(static_cast<std::size_t>(block.count), TopK(topk)) {}

    void run(Index first, Index last) {
        for (Index n = first; n < last; n += kernel_.width) {
            const Index count = std::min<Index>(kernel_.width, last - n);
            kernel_.bound(block_, gallery_, {n, count, nullptr}, 1, terms_, scores_.data(),
                          kernel_.width, workspace_.scratch());
            for (Index q = 0; q < block_.count; ++q) {
                offer(scores_.data() + q * kernel_.width, n, count, own_[std::size_t(q)]);
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

    const CodeBlock& block_;
    const Codes& gallery_;
    const Int8Kernel& kernel_;
    const Terms& terms_;
    const std::uint8_t* excluded_;
    const CodeWorkspace workspace_;
    std::vector<float> scores_;
    std::vector<TopK> own_;
};

}  // namespace

void int8_search(const Sets& queries, Codes codes, Similarity similarity, const Int8Kernel& kernel,
                 int threads, Index topk, const std::uint8_t* excluded, float* scores,
                 Index* ids) {
    constexpr double codes_a_float = 4;
    const Terms terms = terms_of(similarity, std::max(queries.elements, codes.elements));
    const Index most = std::max<Index>(1, tile_vectors / queries.elements), width = kernel.width;
    const Index groups = (codes.count + width - 1) / width;
    codes.residuals = codes.scales;  // any numbers: their weight is zero
    for (Index first = 0; first < queries.count; first += most) {
        const Index count = std::min(most, queries.count - first);
        const double work = double(count * queries.elements) * double(codes.count) *
                            double(codes.elements * codes.dim) / codes_a_float;
        const int workers = worthwhile_threads(thread_count(threads), work);
        const Index ranges = workers == 1 ? 1 : std::min<Index>(groups, 32 * workers);
        const CodedQueries coded(queries, first, count, similarity, codes.elements, kernel);
        const Estimated estimated(coded);
        Best best;
        best.tops.resize(static_cast<std::size_t>(count), TopK(topk));
        run_workers(ranges, workers, [&](Tasks& left) {
            Scan scan(estimated.block(), codes, kernel, terms, excluded, topk);
            for (Index range; left.take(range);) {
                const Index begin = groups * range / ranges, end = groups * (range + 1) / ranges;
                scan.run(begin * width, std::min(end * width, codes.count));
            }
            scan.end(best);
        });
        for (Index q = 0; q < count; ++q) {
            const Index row = (first + q) * topk;
            best.tops[static_cast<std::size_t>(q)].write(scores + row, ids + row);
        }
    }
}

}  // namespace divse
