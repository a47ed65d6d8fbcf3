// Scan, bound, rescore: what int8.h promises.
#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <limits>
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

// Sets that may belong to the best of one query, shared by all threads.
class Survivors {
public:
    explicit Survivors(Index topk) : lows_(topk) {}

    // No set with a bound below this belongs to the best.
    float threshold() const { return threshold_.load(std::memory_order_relaxed); }

    void add(const Index* ids, const float* upper, const float* lower, Index count) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (Index i = 0; i < count; ++i) threshold_ = lows_.offer(lower[i]);
        for (Index i = 0; i < count; ++i) {
            if (!(upper[i] < threshold())) hits_.push_back({upper[i], ids[i]});
        }
        if (hits_.size() < checked_) return;
        drop_lost();
        checked_ = 2 * hits_.size() + 1024;
    }

    // Highest bound first, NaN before all.
    std::vector<Hit> take() {
        drop_lost();
        std::sort(hits_.begin(), hits_.end(), [](const Hit& a, const Hit& b) {
            const bool a_nan = a.score != a.score, b_nan = b.score != b.score;
            if (a_nan || b_nan) return a_nan && (!b_nan || a.id < b.id);
            return a.score != b.score ? a.score > b.score : a.id < b.id;
        });
        return std::move(hits_);
    }

private:
    void drop_lost() {
        const auto lost = [&](const Hit& hit) { return hit.score < threshold(); };
        hits_.erase(std::remove_if(hits_.begin(), hits_.end(), lost), hits_.end());
    }

    std::mutex mutex_;
    std::atomic<float> threshold_{lowest};
    RankValue lows_;
    std::vector<Hit> hits_;
    std::size_t checked_ = 1024;
};

// Ranges of the gallery for the queries of one block.
struct Scan {
    const CodedQueries& queries;
    const Codes& gallery;
    const Int8Kernel& kernel;
    const Terms& terms;
    const std::uint8_t* excluded;
    std::deque<Survivors>& survivors;  // of all queries

    void run(Index first, Index last) const {
        const CodeBlock& block = queries.block();
        const CodeWorkspace workspace(kernel, block.count, block.elements, gallery.elements);
        std::vector<float> bounds(at(block.count * kernel.width));
        std::vector<std::vector<Index>> pending(at(block.count));
        for (Index n = first; n < last; n += kernel.width) {
            const Index count = std::min<Index>(kernel.width, last - n);
            kernel.bound(block, gallery, {n, count, nullptr}, 1, terms, bounds.data(), nullptr,
                         kernel.width, workspace.scratch());
            for (Index q = 0; q < block.count; ++q) {
                const float threshold = survivors[at(block.first + q)].threshold();
                const float* upper = bounds.data() + q * kernel.width;
                for (Index i = 0; i < count; ++i) {
                    if (!(upper[i] < threshold)) keep(n + i, q, pending[at(q)], workspace);
                }
            }
        }
        for (Index q = 0; q < block.count; ++q) refine(q, pending[at(q)], workspace);
    }

private:
    void keep(Index n, Index q, std::vector<Index>& pending, const CodeWorkspace& workspace) const {
        if (excluded && excluded[n >> 3] >> (n & 7) & 1) return;
        pending.push_back(n);
        if (static_cast<int>(pending.size()) == kernel.width) refine(q, pending, workspace);
    }

    // Bounds by both parts.
    void refine(Index q, std::vector<Index>& pending, const CodeWorkspace& workspace) const {
        if (pending.empty()) return;
        const auto count = static_cast<Index>(pending.size());
        const CodeBlock own = queries.query(q);
        std::vector<float> upper(at(kernel.width)), lower(at(kernel.width));
        kernel.bound(own, gallery, {0, count, pending.data()}, 2, terms, upper.data(),
                     lower.data(), kernel.width, workspace.scratch());
        survivors[at(own.first)].add(pending.data(), upper.data(), lower.data(), count);
        pending.clear();
    }
};

// One call of certified_search.
class Search {
public:
    Search(const Sets& queries, const Sets& gallery, const Codes& codes,
           const Similarity& similarity, const Kernel& kernel, const Int8Kernel& int8,
           int threads, Index topk)
        : queries_(queries), gallery_(gallery), codes_(codes), similarity_(similarity),
          kernel_(kernel), int8_(int8), topk_(topk), threads_(thread_count(threads)) {}

    void run(const std::uint8_t* excluded, const Certified& out) {
        for (Index q = 0; q < queries_.count; q += block_queries()) {
            scan(q, std::min(block_queries(), queries_.count - q), excluded);
        }
        finalists_.resize(at(queries_.count));
        parallel_for(queries_.count, queries_.count == 1 ? 1 : threads_, [&](Index q) {
            out.survivors[q] = rescore(q);
        });
        for (Index q = 0; q < queries_.count; q += kernel_.width) {
            finish(q, std::min<Index>(kernel_.width, queries_.count - q), out);
        }
    }

private:
    Index block_queries() const {
        return std::max<Index>(1, tile_vectors / queries_.elements);
    }

    void scan(Index first, Index count, const std::uint8_t* excluded) {
        const CodedQueries coded(queries_, first, count, similarity_, gallery_.elements, int8_);
        const Terms terms =
            terms_of(similarity_, std::max(queries_.elements, gallery_.elements));
        for (Index q = 0; q < count; ++q) {
            survivors_.emplace_back(topk_);
            disagreements_.push_back(coded.disagreement(q));
        }
        const Scan scan{coded, codes_, int8_, terms, excluded, survivors_};
        const int threads = worthwhile_threads(threads_, work_of(queries_of(queries_, first, count),
                                                                 codes_));
        const Index groups = (codes_.count + int8_.width - 1) / int8_.width;
        const Index ranges = threads == 1 ? 1 : std::min<Index>(groups, 8 * threads);
        parallel_for(ranges, threads, [&](Index range) {
            const Index begin = groups * range / ranges, end = groups * (range + 1) / ranges;
            scan.run(begin * int8_.width, std::min(end * int8_.width, codes_.count));
        });
    }

    // Exact scores of one query's survivors until no bound reaches rank topk; keeps those that
    // search, which may sum in another order, could rank among the best. Returns how many it scored.
    Index rescore(Index q) {
        const std::vector<Hit> hits = survivors_[at(q)].take();
        const Sets query = queries_of(queries_, q, 1);
        RankValue rank(topk_);
        std::vector<Hit> exact;
        Index batch = (topk_ + kernel_.width - 1) / kernel_.width * kernel_.width;
        for (std::size_t next = 0; next < hits.size(); batch = std::min<Index>(2 * batch, 4096)) {
            std::vector<Index> ids;
            while (next < hits.size() && static_cast<Index>(ids.size()) < batch &&
                   !(hits[next].score < rank.get())) {
                ids.push_back(hits[next++].id);
            }
            if (ids.empty()) break;
            std::vector<float> scored(ids.size());
            scores(query, sets_of(gallery_, ids), similarity_, kernel_,
                   queries_.count == 1 ? threads_ : 1, scored.data(), {nullptr, 0});
            for (std::size_t i = 0; i < ids.size(); ++i) {
                exact.push_back({scored[i], ids[i]});
                rank.offer(scored[i]);
            }
        }
        const float least = rank.get() - 2 * disagreements_[at(q)];
        for (const Hit& hit : exact) {
            if (!(hit.score < least)) finalists_[at(q)].push_back(hit);
        }
        return static_cast<Index>(exact.size());
    }

    // The best of queries first.., scored together as search scores them.
    void finish(Index first, Index count, const Certified& out) {
        std::vector<TopK> best(at(count), TopK(topk_));
        if (queries_.count == 1) {
            for (const Hit& hit : finalists_[0]) best[0].offer(hit);
        } else {
            std::vector<Index> ids;
            for (Index q = first; q < first + count; ++q) {
                for (const Hit& hit : finalists_[at(q)]) ids.push_back(hit.id);
            }
            std::sort(ids.begin(), ids.end());
            ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
            std::vector<float> scored(at(count) * ids.size());
            scores(queries_of(queries_, first, count), sets_of(gallery_, ids), similarity_, kernel_,
                   threads_, scored.data(), {nullptr, 0});
            for (Index q = 0; q < count; ++q) {
                const float* own = scored.data() + at(q) * ids.size();
                for (std::size_t i = 0; i < ids.size(); ++i) best[at(q)].offer({own[i], ids[i]});
            }
        }
        for (Index q = 0; q < count; ++q) {
            const Index row = (first + q) * topk_;
            merge(&best[at(q)], 1, topk_, out.scores + row, out.ids + row);
        }
    }

    const Sets& queries_;
    const Sets& gallery_;
    const Codes& codes_;
    const Similarity& similarity_;
    const Kernel& kernel_;
    const Int8Kernel& int8_;
    const Index topk_;
    const int threads_;
    std::deque<Survivors> survivors_;  // of all queries, as are the next two
    std::vector<float> disagreements_;
    std::vector<std::vector<Hit>> finalists_;
};

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
                 const Int8Kernel& kernel, int parts, int threads, float* upper, float* lower) {
    const Terms terms = terms_of(similarity, std::max(queries.elements, codes.elements));
    parallel_for(queries.count, thread_count(threads), [&](Index q) {
        const CodedQueries coded(queries, q, 1, similarity, codes.elements, kernel);
        const CodeWorkspace workspace(kernel, 1, queries.elements, codes.elements);
        std::vector<float> above(at(kernel.width)), below(at(kernel.width));
        for (Index n = 0; n < codes.count; n += kernel.width) {
            const Index count = std::min<Index>(kernel.width, codes.count - n);
            kernel.bound(coded.block(), codes, {n, count, nullptr}, parts, terms, above.data(),
                         below.data(), kernel.width, workspace.scratch());
            std::copy_n(above.data(), count, upper + q * codes.count + n);
            std::copy_n(below.data(), count, lower + q * codes.count + n);
        }
    });
}

void certified_search(const Sets& queries, const Sets& gallery, const Codes& codes,
                      Similarity similarity, const Kernel& kernel, const Int8Kernel& int8,
                      int threads, std::int64_t topk, const std::uint8_t* excluded,
                      const Certified& out) {
    if (queries.count == 0) return;
    Search(queries, gallery, codes, similarity, kernel, int8, threads, topk).run(excluded, out);
}

}  // namespace divse
