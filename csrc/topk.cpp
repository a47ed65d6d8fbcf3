#include "topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace divse {

namespace {

constexpr std::size_t spare = 64;

bool better(const Hit& a, const Hit& b) {
    const bool a_is_nan = a.score != a.score, b_is_nan = b.score != b.score;
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (a.score != b.score && !a_is_nan) return a.score > b.score;
    return a.id < b.id;
}

}  // namespace

void TopK::offer(Hit hit) {
    if (full_ && !better(hit, worst_)) return;
    hits_.push_back(hit);
    if (hits_.size() >= topk_ + std::max(topk_, spare)) keep_best();
}

// Selects among the bare scores first: that is several times as fast as among hits.
void TopK::keep_best() {
    scores_.clear();
    for (const Hit& hit : hits_) {
        scores_.push_back(hit.score == hit.score ? -hit.score : INFINITY);
    }
    const auto last = scores_.begin() + static_cast<std::ptrdiff_t>(topk_) - 1;
    std::nth_element(scores_.begin(), last, scores_.end());
    const float least = -*last;
    const auto above = [least](const Hit& hit) { return hit.score > least; };
    // Of those that are no better than the last the lowest ids stay.
    const auto rest = std::partition(hits_.begin(), hits_.end(), above);
    const auto end = hits_.begin() + static_cast<std::ptrdiff_t>(topk_);
    std::nth_element(rest, end - 1, hits_.end(), better);
    worst_ = end[-1];
    full_ = true;
    hits_.resize(topk_);
}

void TopK::offer(const float* scores, std::int64_t count, std::int64_t first_id) {
    constexpr std::int64_t some = 16;
    for (std::int64_t i = 0; i < count;) {
        // Most sets fail this one comparison; NaN and ties go on to the full one.
        if (full_ && i + some <= count) {
            int kept = 0;
            for (std::int64_t j = i; j < i + some; ++j) kept += !(scores[j] < worst_.score);
            if (kept == 0) {
                i += some;
                continue;
            }
        }
        for (const std::int64_t end = std::min(i + some, count); i < end; ++i) {
            if (full_ && scores[i] < worst_.score) continue;
            offer({scores[i], first_id + i});
        }
    }
}

void TopK::take_from(TopK& other) {
    if (hits_.empty()) return std::swap(*this, other);
    for (const Hit& hit : std::exchange(other.hits_, {})) offer(hit);
    other.full_ = false;
}

void TopK::write(float* scores, std::int64_t* ids, bool ordered) {
    if (hits_.size() > topk_) keep_best();
    std::vector<Hit> hits = std::exchange(hits_, {});
    full_ = false;
    if (ordered) std::sort(hits.begin(), hits.end(), better);
    hits.resize(topk_, {-std::numeric_limits<float>::infinity(), -1});
    for (const Hit& hit : hits) {
        *scores++ = hit.score;
        *ids++ = hit.id;
    }
}

}  // namespace divse
