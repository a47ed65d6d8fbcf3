// Search by what the codes say, without bounds and without the embeddings.
#include <algorithm>
#include <mutex>
#include <utility>

#include "int8_queries.h"
#include "parallel.h"
#include "topk.h"

namespace divse {

namespace {

using Index = std::int64_t;
using Groups = std::pair<Index, Index>;  // the first, and the one after the last

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// What all scans of one call work on.
struct Problem {
    const Sets& queries;
    const LaneGallery& gallery;
    const Similarity& similarity;
    const Int8Kernel& kernel;
    const Index topk;
    const bool ordered;
    float* const scores;
    Index* const ids;

    const LaneCodes& codes() const { return *gallery.codes; }
    double work(Index count, Index groups) const {
        constexpr double codes_a_float = 4;
        return double(count * queries.elements) * double(groups * lane_sets) *
               double(codes().elements * codes().dim) / codes_a_float;
    }
};

// What all threads found for the queries of one block.
struct Best {
    std::mutex mutex;
    std::vector<TopK> tops;
};

class Scan {
public:
    Scan(const Problem& problem, const CodeBlock& block, const Terms& terms)
        : block_(block), gallery_(problem.gallery), kernel_(problem.kernel), terms_(terms),
          workspace_(kernel_, block.count, block.elements, problem.codes().elements),
          scores_(at(block.count * stride)), own_(at(block.count), TopK(problem.topk)) {}

    void run(const Groups& groups) {
        const LaneCodes& codes = *gallery_.codes;
        for (Index group = groups.first; group < groups.second; group += groups_at_once) {
            const Index end = std::min(group + groups_at_once, groups.second);
            kernel_.estimate(block_, codes, group, end, terms_, scores_.data(), stride,
                             workspace_.scratch());
            const Index n = group * lane_sets, count = std::min(end * lane_sets, codes.count) - n;
            for (Index q = 0; q < block_.count; ++q) {
                offer(scores_.data() + q * stride, n, count, own_[at(q)]);
            }
        }
    }

    void end(Best& best) {
        const std::lock_guard<std::mutex> lock(best.mutex);
        for (std::size_t q = 0; q < own_.size(); ++q) best.tops[q].take_from(own_[q]);
    }

private:
    void offer(const float* scores, Index first, Index count, TopK& top) const {
        if (!gallery_.excluded) return top.offer(scores, count, first);
        for (Index n = first; n < first + count; ++n) {
            const Index id = gallery_.order ? gallery_.order[n] : n;
            if (!(gallery_.excluded[id >> 3] >> (id & 7) & 1)) {
                top.offer(scores + (n - first), 1, n);
            }
        }
    }

    static constexpr Index groups_at_once = 16, stride = groups_at_once * lane_sets;

    const CodeBlock& block_;
    const LaneGallery& gallery_;
    const Int8Kernel& kernel_;
    const Terms& terms_;
    const CodeWorkspace workspace_;
    std::vector<float> scores_;
    std::vector<TopK> own_;
};

// The best for the queries first.. in these parts of the gallery.
void search_parts(const Problem& problem, Index first, Index count,
                  const std::vector<Groups>& parts, int threads) {
    const Index elements = problem.codes().elements, topk = problem.topk;
    const Terms terms = terms_of(problem.similarity, std::max(problem.queries.elements, elements));
    const CodedQueries coded(problem.queries, first, count, problem.similarity, elements,
                             problem.kernel);
    Best best;
    best.tops.resize(at(count), TopK(topk));
    run_workers(static_cast<Index>(parts.size()), threads, [&](OwnTasks& left) {
        Scan scan(problem, coded.block(), terms);
        for (Index part; left.take(part);) scan.run(parts[at(part)]);
        scan.end(best);
    });
    for (Index q = 0; q < count; ++q) {
        Index* const ids = problem.ids + (first + q) * topk;
        best.tops[at(q)].write(problem.scores + (first + q) * topk, ids, problem.ordered);
        if (!problem.gallery.order) continue;
        for (Index i = 0; i < topk; ++i) {
            if (ids[i] >= 0) ids[i] = problem.gallery.order[ids[i]];
        }
    }
}

// A few queries at a time go over all sets. Threads share the sets, or where there are many queries
// and few sets, the queries: then nobody waits at the end of each few.
void search_all(const Problem& problem, int threads) {
    constexpr Index few_groups = 1024;
    const Index queries = problem.queries.count;
    const Index most = std::max<Index>(1, tile_vectors / problem.queries.elements);
    const Index groups = (problem.codes().count + lane_sets - 1) / lane_sets;
    const Index blocks = (queries + most - 1) / most;
    const bool shared = blocks >= 4 * threads && groups <= few_groups;
    const auto search_block = [&](Index block) {
        const Index first = block * most, count = std::min(most, queries - first);
        const double work = problem.work(count, groups);
        const int workers = shared ? 1 : worthwhile_threads(threads, work);
        const Index parts = workers == 1 ? 1 : std::min<Index>(groups, 32 * workers);
        std::vector<Groups> all;
        for (Index i = 0; i < parts; ++i) {
            all.push_back({groups * i / parts, groups * (i + 1) / parts});
        }
        search_parts(problem, first, count, all, workers);
    };
    if (shared) {
        const double work = problem.work(queries, groups);
        return parallel_for(blocks, worthwhile_threads(threads, work), search_block);
    }
    for (Index block = 0; block < blocks; ++block) search_block(block);
}

// The groups that hold sets of these cells, each once, in ascending order.
std::vector<Groups> groups_of(const Cells& cells, std::vector<Index> chosen) {
    std::sort(chosen.begin(), chosen.end());
    std::vector<Groups> found;
    for (const Index cell : chosen) {
        const Index begin = cells.begins[cell], end = cells.begins[cell + 1];
        if (begin == end) continue;
        const Groups own{begin / lane_sets, (end + lane_sets - 1) / lane_sets};
        if (!found.empty() && own.first <= found.back().second) {
            found.back().second = std::max(found.back().second, own.second);
        } else {
            found.push_back(own);
        }
    }
    return found;
}

// In parts that threads may share.
std::vector<Groups> cut(const std::vector<Groups>& ranges) {
    constexpr Index most = 64;
    std::vector<Groups> parts;
    for (const auto& [first, last] : ranges) {
        for (Index group = first; group < last; group += most) {
            parts.push_back({group, std::min(group + most, last)});
        }
    }
    return parts;
}

// Each query looks into cells of its own; threads share the queries, or the parts of a single one.
void search_cells(const Problem& problem, int threads) {
    const Cells& cells = *problem.gallery.cells;
    const Index queries = problem.queries.count, probe = cells.probe;
    std::vector<float> scores(at(queries * probe));
    std::vector<Index> chosen(scores.size());
    const LaneGallery leaders{cells.leaders, nullptr, nullptr, nullptr};
    search_all({problem.queries, leaders, problem.similarity, problem.kernel, probe, false,
                scores.data(), chosen.data()},
               threads);
    std::vector<std::vector<Groups>> ranges(at(queries));
    Index groups = 0;
    for (Index q = 0; q < queries; ++q) {
        const auto own = chosen.begin() + q * probe;
        ranges[at(q)] = groups_of(cells, {own, own + probe});
        for (const auto& [first, last] : ranges[at(q)]) groups += last - first;
    }
    const int workers = worthwhile_threads(threads, problem.work(1, groups));
    parallel_for(queries, queries == 1 ? 1 : workers, [&](Index q) {
        search_parts(problem, q, 1, cut(ranges[at(q)]), queries == 1 ? workers : 1);
    });
}

}  // namespace

void int8_search(const Sets& queries, const LaneGallery& gallery, Similarity similarity,
                 const Int8Kernel& kernel, int threads, Index topk, bool ordered, float* scores,
                 Index* ids) {
    const Problem problem{queries, gallery, similarity, kernel, topk, ordered, scores, ids};
    const bool all = !gallery.cells || gallery.cells->probe >= gallery.cells->leaders->count;
    (all ? search_all : search_cells)(problem, thread_count(threads));
}

}  // namespace divse
