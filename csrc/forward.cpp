// Scores and search: which queries go together, and how the work is divided.
#include <algorithm>
#include <memory>
#include <mutex>
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

// One call. Its tasks are ranges of the gallery for query spans, one span after another.
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
        const std::int64_t tasks = threads_ == 1 ? 1 : 32 * threads_;  // the threads' ends even out
        ranges_ = std::clamp<std::int64_t>((tasks + spans_count - 1) / spans_count, 1,
                                           (gallery.count + 63) / 64);
    }

    // One thread's queries of one span, with memory to score them in.
    struct Scorer {
        const Work& work;
        const Span& span;
        const PackedQueries packed;
        const Workspace workspace;

        Scorer(const Work& work, const Span& span)
            : work(work), span(span),
              packed(work.queries_, span.first, span.count, span.in_lanes, work.kernel_),
              workspace(work.kernel_, span.in_lanes ? packed.block().groups : span.count,
                        work.queries_.elements, work.gallery_.elements, work.queries_.dim) {}

        // Scores of sets n..end of (a selection of) the gallery.
        void score(const Sets& sets, std::int64_t n, std::int64_t end, float* out,
                   std::int64_t stride) const {
            work.kernel_.score(packed.block(), sets, n, end, work.terms_, out, stride, work.kept_,
                               workspace.scratch());
        }
    };

    // On every thread visitor = begin(), then visitor.visit(scorer, first set, last set) for each
    // task, then visitor.end().
    template <class Begin>
    void run(const Begin& begin) const {
        const auto tasks = static_cast<std::int64_t>(spans.size()) * ranges_;
        run_workers(tasks, threads_, [&](OwnTasks& left) {
            auto visitor = begin();
            std::unique_ptr<const Scorer> scorer;
            for (std::int64_t task; left.take(task);) {
                const Span& span = spans[static_cast<std::size_t>(task / ranges_)];
                const std::int64_t range = task % ranges_;
                if (!scorer || &scorer->span != &span) {
                    scorer = std::make_unique<const Scorer>(*this, span);
                }
                visitor.visit(*scorer, border(range), border(range + 1));
            }
            visitor.end();
        });
    }

    const std::vector<Span> spans;

private:
    // A multiple of the width, so that the lanes of a range are full.
    std::int64_t border(std::int64_t range) const {
        const std::int64_t groups = (gallery_.count + kernel_.width - 1) / kernel_.width;
        return std::min(groups * range / ranges_ * kernel_.width, gallery_.count);
    }

    const Sets& queries_;
    const Sets& gallery_;
    const Kernel& kernel_;
    const Cosines kept_;
    const Terms terms_;
    const int threads_;
    std::int64_t ranges_;
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

// Writes all scores.
struct Writer {
    const Sets& gallery;
    float* out;

    void visit(const Work::Scorer& scorer, std::int64_t first, std::int64_t last) const {
        scorer.score(gallery, first, last, out + scorer.span.first * gallery.count + first,
                     gallery.count);
    }
    void end() const {}
};

// The best of all threads, per query.
struct Best {
    std::mutex mutex;
    std::vector<TopK> tops;
};

// Keeps the best that one thread has seen.
class Keeper {
public:
    Keeper(const Sets& gallery, const std::uint8_t* excluded, std::int64_t topk, Best& best)
        : gallery_(gallery), excluded_(excluded), best_(best), own_(best.tops.size(), TopK(topk)) {}

    void visit(const Work::Scorer& scorer, std::int64_t first, std::int64_t last) {
        const Span& span = scorer.span;
        buffer_.resize(static_cast<std::size_t>(span.count * sets_at_once));
        for (std::int64_t n = first; n < last; n += sets_at_once) {
            const Included part(gallery_, excluded_, n, std::min(n + sets_at_once, last));
            scorer.score(part.sets, part.begin, part.begin + part.count, buffer_.data(),
                         sets_at_once);
            for (std::int64_t q = 0; q < span.count; ++q) {
                part.offer(buffer_.data() + q * sets_at_once,
                           own_[static_cast<std::size_t>(span.first + q)]);
            }
        }
    }

    void end() {
        const std::lock_guard<std::mutex> lock(best_.mutex);
        for (std::size_t q = 0; q < own_.size(); ++q) best_.tops[q].take_from(own_[q]);
    }

private:
    const Sets& gallery_;
    const std::uint8_t* excluded_;
    Best& best_;
    std::vector<TopK> own_;  // of all queries
    std::vector<float> buffer_;
};

}  // namespace

void scores(const Sets& queries, const Sets& gallery, Similarity similarity, const Kernel& kernel,
            int threads, float* out, const Cosines& kept) {
    if (queries.count == 0 || gallery.count == 0) return;
    const Work work(queries, gallery, similarity, kernel, threads, kept);
    work.run([&] { return Writer{gallery, out}; });
}

void search(const Sets& queries, const Sets& gallery, Similarity similarity, const Kernel& kernel,
            int threads, std::int64_t topk, const std::uint8_t* excluded, float* out_scores,
            std::int64_t* out_ids) {
    if (queries.count == 0) return;
    const Work work(queries, gallery, similarity, kernel, threads, {nullptr, 0});
    Best best;
    best.tops.resize(static_cast<std::size_t>(queries.count), TopK(topk));
    work.run([&] { return Keeper(gallery, excluded, topk, best); });
    for (std::int64_t q = 0; q < queries.count; ++q) {
        best.tops[static_cast<std::size_t>(q)].write(out_scores + q * topk, out_ids + q * topk);
    }
}

}  // namespace divse
