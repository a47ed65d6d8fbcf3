// Scan, bound, rescore: what int8.h promises.
#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>

#include "int8_queries.h"
#include "parallel.h"
#include "sets_access.h"
#include "topk.h"

namespace divse {

namespace {

using Index = std::int64_t;

constexpr float lowest = -std::numeric_limits<float>::infinity();

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

double work_of(const Sets& queries, const Codes& gallery) {
    constexpr double codes_a_float = 4;
    return double(queries.count) * double(queries.elements) * double(gallery.count) *
           double(gallery.elements) * double(gallery.dim) / codes_a_float;
}

Sets sets_of(const Sets& sets, const std::vector<Index>& ids) {
    Sets chosen = sets;
    chosen.ids = ids.data();
    chosen.count = static_cast<Index>(ids.size());
    return chosen;
}

Sets queries_of(const Sets& queries, Index first, Index count) {
    Sets some = queries;
    if (some.offsets) {
        some.offsets += first;
    } else {
        some.values = element_of(queries, first, 0);
    }
    if (some.lengths) some.lengths += first;
    some.count = count;
    return some;
}

// The value of rank `topk` of a stream, -inf before there are as many; NaN does not count.
class RankValue {
public:
    explicit RankValue(Index topk) : topk_(at(topk)) {}

    float offer(float value) {
        if (value != value) return get();
        if (values_.size() == topk_ && !(value > values_.front())) return get();
        if (values_.size() == topk_) {
            std::pop_heap(values_.begin(), values_.end(), std::greater<>());
            values_.pop_back();
        }
        values_.push_back(value);
        std::push_heap(values_.begin(), values_.end(), std::greater<>());
        return get();
    }
    float get() const { return values_.size() < topk_ ? lowest : values_.front(); }

private:
    const std::size_t topk_;
    std::vector<float> values_;  // a heap, the least on top
};

// Sets of one query that were scored exactly, shared by all threads.
class Survivors {
public:
    // Exact scores that are summed in another order differ by at most `disagreement`.
    Survivors(Index topk, float disagreement) : rank_(topk), slack_(2 * disagreement) {}

    // No set with a bound below this belongs to the best.
    float threshold() const { return threshold_.load(std::memory_order_relaxed); }

    void add(const std::vector<Index>& ids, const float* scores) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (std::size_t i = 0; i < ids.size(); ++i) {
            threshold_ = rank_.offer(scores[i]) - slack_;
            if (!(scores[i] < threshold())) hits_.push_back({scores[i], ids[i]});
        }
        count_ += static_cast<Index>(ids.size());
    }

    Index count() const { return count_; }

    // Those that may be among the best, whatever the order of the sums.
    std::vector<Hit> take() {
        const auto lost = [&](const Hit& hit) { return hit.score < threshold(); };
        hits_.erase(std::remove_if(hits_.begin(), hits_.end(), lost), hits_.end());
        return std::move(hits_);
    }

private:
    std::mutex mutex_;
    std::atomic<float> threshold_{lowest};
    RankValue rank_;
    const float slack_;
    Index count_ = 0;
    std::vector<Hit> hits_;
};

// What all parts of one call work on.
struct Problem {
    const Sets &queries, &gallery;
    const Codes& codes;
    const Similarity& similarity;
    const Kernel& kernel;
    const Int8Kernel& int8;
    const Terms terms;
    const std::uint8_t* excluded;

    std::vector<float> exact(Index first_query, Index count, const std::vector<Index>& ids,
                             int threads) const {
        std::vector<float> scored(at(count) * ids.size());
        scores(queries_of(queries, first_query, count), sets_of(gallery, ids), similarity, kernel,
               threads, scored.data(), {nullptr, 0});
        return scored;
    }
};

// Exact scores of one query at a time, as search scores a query that comes alone.
class ExactScorer {
public:
    ExactScorer(const Problem& problem, Index query)
        : problem_(problem), packed_(problem.queries, query, 1, false, problem.kernel),
          workspace_(problem.kernel, 1, problem.queries.elements, problem.gallery.elements,
                     problem.queries.dim) {}

    void score(const std::vector<Index>& ids, float* out) const {
        const auto count = static_cast<Index>(ids.size());
        problem_.kernel.score(packed_.block(), sets_of(problem_.gallery, ids), 0, count,
                              problem_.terms, out, count, {nullptr, 0}, workspace_.scratch());
    }

private:
    const Problem& problem_;
    const PackedQueries packed_;
    const Workspace workspace_;
};

// One thread's scan of ranges of the gallery for the queries of one block.
class Scan {
public:
    Scan(const Problem& problem, const CodedQueries& queries, std::deque<Survivors>& survivors)
        : problem_(problem), queries_(queries), survivors_(survivors),
          workspace_(problem.int8, queries.block().count, queries.block().elements,
                     problem.codes.elements),
          bounds_(at(queries.block().count * problem.int8.width)), few_(at(problem.int8.width)),
          pending_(at(queries.block().count)), exact_(at(queries.block().count)) {
        for (auto& pending : pending_) pending.reserve(most_pending);
    }

    void run(Index first, Index last) {
        const CodeBlock& block = queries_.block();
        const Int8Kernel& kernel = problem_.int8;
        for (Index n = first; n < last; n += kernel.width) {
            const Index count = std::min<Index>(kernel.width, last - n);
            kernel.bound(block, problem_.codes, {n, count, nullptr}, 1, problem_.terms,
                         bounds_.data(), kernel.width, workspace_.scratch());
            for (Index q = 0; q < block.count; ++q) {
                const float threshold = survivors_[at(block.first + q)].threshold();
                const float* upper = bounds_.data() + q * kernel.width;
                for (Index i = 0; i < count; ++i) {
                    if (!(upper[i] < threshold)) keep({upper[i], n + i}, q);
                }
            }
        }
    }

    void end() {
        for (Index q = 0; q < queries_.block().count; ++q) refine(q);
    }

private:
    // Sets that wait to be refined. The more wait, the better are those that raise the threshold
    // first and the later it rises: 512 score fewer sets exactly than 256, and took no less time.
    static constexpr std::size_t most_pending = 256;

    void keep(Hit bound, Index q) {
        if (problem_.excluded && problem_.excluded[bound.id >> 3] >> (bound.id & 7) & 1) return;
        pending_[at(q)].push_back(bound);
        if (pending_[at(q)].size() == most_pending) refine(q);
    }

    // Asks for the elements of up to a register's width of sets, which are read a little later.
    void fetch(const std::vector<Hit>& sets, std::size_t first) const {
        constexpr Index line = 64, most_bytes = 4096;
        const std::size_t end = std::min(sets.size(), first + at(problem_.int8.width));
        for (std::size_t i = first; i < end; ++i) {
            const Index n = sets[i].id;
            const char* set = first_of(problem_.gallery, n);
            const Index bytes = length_of(problem_.gallery, n) * step_of(problem_.gallery);
            for (Index b = 0; b < std::min(bytes, most_bytes); b += line) {
                __builtin_prefetch(set + b);
            }
        }
    }

    // From the highest bound down, NaN above all: those that still reach the threshold are bounded
    // by both parts, and then scored exactly.
    void refine(Index q) {
        std::vector<Hit>& pending = pending_[at(q)];
        const Survivors& survivors = survivors_[at(queries_.block().first + q)];
        std::sort(pending.begin(), pending.end(), [](const Hit& a, const Hit& b) {
            return a.score > b.score || (a.score != a.score && b.score == b.score);
        });
        const auto lost = [&](const Hit& hit) { return hit.score < survivors.threshold(); };
        const std::size_t width = at(problem_.int8.width);
        fetch(pending, 0);
        for (std::size_t i = 0; i < pending.size() && !lost(pending[i]); i += width) {
            fetch(pending, i + width);
            ids_.clear();
            const std::size_t end = std::min(pending.size(), i + width);
            for (std::size_t p = i; p < end && !lost(pending[p]); ++p) {
                ids_.push_back(pending[p].id);
            }
            if (!ids_.empty()) refine_some(q);  // others may have raised the threshold
        }
        pending.clear();
    }

    void refine_some(Index q) {
        const CodeBlock own = queries_.query(q);
        Survivors& survivors = survivors_[at(own.first)];
        problem_.int8.bound(own, problem_.codes, {0, static_cast<Index>(ids_.size()), ids_.data()},
                            2, problem_.terms, few_.data(), problem_.int8.width,
                            workspace_.scratch());
        std::size_t left = 0;
        for (std::size_t i = 0; i < ids_.size(); ++i) {
            if (!(few_[i] < survivors.threshold())) ids_[left++] = ids_[i];
        }
        ids_.resize(left);
        if (ids_.empty()) return;
        auto& exact = exact_[at(q)];
        if (!exact) exact = std::make_unique<const ExactScorer>(problem_, own.first);
        exact->score(ids_, few_.data());
        survivors.add(ids_, few_.data());
    }

    const Problem& problem_;
    const CodedQueries& queries_;
    std::deque<Survivors>& survivors_;  // of all queries
    const CodeWorkspace workspace_;
    std::vector<float> bounds_, few_;
    std::vector<Index> ids_;
    std::vector<std::vector<Hit>> pending_;                  // bounds, of each query
    std::vector<std::unique_ptr<const ExactScorer>> exact_;  // likewise, once it is needed
};

// Scans for the queries first.., and appends what survives.
void scan(const Problem& problem, Index first, Index count, Index topk, int threads,
          std::deque<Survivors>& survivors) {
    const CodedQueries coded(problem.queries, first, count, problem.similarity,
                             problem.codes.elements, problem.int8);
    for (Index q = 0; q < count; ++q) survivors.emplace_back(topk, coded.disagreement(q));
    const Index width = problem.int8.width, sets = problem.codes.count;
    const Index groups = (sets + width - 1) / width;
    const Index ranges = threads == 1 ? 1 : std::min<Index>(groups, 32 * threads);
    run_workers(ranges, threads, [&](OwnTasks& left) {
        Scan scan(problem, coded, survivors);
        for (Index range; left.take(range);) {
            const Index begin = groups * range / ranges, end = groups * (range + 1) / ranges;
            scan.run(begin * width, std::min(end * width, sets));
        }
        scan.end();
    });
}

// The best of queries first.., scored together as search scores them.
void finish(const Problem& problem, Index first, Index count, Index topk, int threads,
            std::deque<Survivors>& survivors, const Certified& out) {
    std::vector<std::vector<Hit>> hits(at(count));
    std::vector<Index> ids;
    for (Index q = 0; q < count; ++q) {
        hits[at(q)] = survivors[at(first + q)].take();
        for (const Hit& hit : hits[at(q)]) ids.push_back(hit.id);
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    std::vector<float> scored;
    if (problem.queries.count > 1) scored = problem.exact(first, count, ids, threads);
    for (Index q = 0; q < count; ++q) {
        TopK best(topk);
        if (scored.empty()) {
            for (const Hit& hit : hits[at(q)]) best.offer(hit);
        } else {
            const float* own = scored.data() + at(q) * ids.size();
            for (std::size_t i = 0; i < ids.size(); ++i) best.offer({own[i], ids[i]});
        }
        const Index row = (first + q) * topk;
        best.write(out.scores + row, out.ids + row);
        out.survivors[first + q] = survivors[at(first + q)].count();
    }
}

}  // namespace

Index encode(const Sets& sets, const Int8Kernel& kernel, int threads, std::int8_t* codes,
             float* scales, float* residuals) {
    constexpr Index sets_at_once = 256;
    const Index tasks = (sets.count + sets_at_once - 1) / sets_at_once, dim = sets.dim;
    std::atomic<Index> bad{sets.count};
    parallel_for(tasks, thread_count(threads), [&](Index task) {
        std::vector<float> floats(at(dim));
        const Index end = std::min(sets.count, (task + 1) * sets_at_once);
        for (Index n = task * sets_at_once; n < end; ++n) {
            const Index length = length_of(sets, n);
            const Index first = sets.offsets ? sets.offsets[n] : n * sets.elements;
            bool sound = true;
            for (Index j = 0; j < length; ++j) {
                sound &= kernel.encode(element_of(sets, n, j), sets.element, dim, unit_bound,
                                       floats.data(), codes + (first + j) * dim,
                                       scales + first + j, residuals + first + j);
            }
            const Index padding = sets.offsets ? 0 : sets.elements - length;
            std::fill_n(codes + (first + length) * dim, padding * dim, std::int8_t{0});
            std::fill_n(scales + first + length, padding, 0.0f);
            std::fill_n(residuals + first + length, padding, 0.0f);
            Index known = bad;
            while (!sound && n < known && !bad.compare_exchange_weak(known, n)) {}
        }
    });
    return bad == sets.count ? -1 : bad.load();
}

void int8_bounds(const Sets& queries, const Codes& codes, Similarity similarity,
                 const Int8Kernel& kernel, int parts, int threads, float* upper) {
    const Terms terms = terms_of(similarity, std::max(queries.elements, codes.elements));
    parallel_for(queries.count, thread_count(threads), [&](Index q) {
        const CodedQueries coded(queries, q, 1, similarity, codes.elements, kernel);
        const CodeWorkspace workspace(kernel, 1, queries.elements, codes.elements);
        std::vector<float> bounds(at(kernel.width));
        for (Index n = 0; n < codes.count; n += kernel.width) {
            const Index count = std::min<Index>(kernel.width, codes.count - n);
            kernel.bound(coded.block(), codes, {n, count, nullptr}, parts, terms, bounds.data(),
                         kernel.width, workspace.scratch());
            std::copy_n(bounds.data(), count, upper + q * codes.count + n);
        }
    });
}

void certified_search(const Sets& queries, const Sets& gallery, const Codes& codes,
                      Similarity similarity, const Kernel& kernel, const Int8Kernel& int8,
                      int threads, std::int64_t topk, const std::uint8_t* excluded,
                      const Certified& out) {
    const Problem problem{queries, gallery, codes, similarity, kernel, int8,
                          terms_of(similarity, std::max(queries.elements, gallery.elements)),
                          excluded};
    const Index block = std::max<Index>(1, tile_vectors / queries.elements);
    threads = worthwhile_threads(thread_count(threads), work_of(queries, codes));
    std::deque<Survivors> survivors;
    for (Index q = 0; q < queries.count; q += block) {
        scan(problem, q, std::min(block, queries.count - q), topk, threads, survivors);
    }
    for (Index q = 0; q < queries.count; q += kernel.width) {
        const Index count = std::min<Index>(kernel.width, queries.count - q);
        finish(problem, q, count, topk, threads, survivors, out);
    }
}

}  // namespace divse
