#include "topk.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace divse {

namespace {

bool better(const Hit& a, const Hit& b) {
    const bool a_is_nan = a.score != a.score, b_is_nan = b.score != b.score;
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (a.score != b.score && !a_is_nan) return a.score > b.score;
    return a.id < b.id;
}

}  // namespace

void TopK::offer(Hit hit) {
    if (hits_.size() < topk_) {
        hits_.push_back(hit);
        if (hits_.size() == topk_) std::make_heap(hits_.begin(), hits_.end(), better);
    } else if (better(hit, hits_.front())) {
        std::pop_heap(hits_.begin(), hits_.end(), better);
        hits_.back() = hit;
        std::push_heap(hits_.begin(), hits_.end(), better);
    }
}

void TopK::offer(const float* scores, std::int64_t count, std::int64_t first_id) {
    for (std::int64_t i = 0; i < count; ++i) {
        // Most sets fail this one comparison; NaN and ties go on to the full one.
        if (hits_.size() == topk_ && scores[i] < hits_.front().score) continue;
        offer({scores[i], first_id + i});
    }
}

void TopK::take_from(TopK& other) {
    for (const Hit& hit : std::exchange(other.hits_, {})) offer(hit);
}

void TopK::write(float* scores, std::int64_t* ids) {
    std::vector<Hit> hits = std::exchange(hits_, {});
    std::sort(hits.begin(), hits.end(), better);
    hits.resize(topk_, {-std::numeric_limits<float>::infinity(), -1});
    for (const Hit& hit : hits) {
        *scores++ = hit.score;
        *ids++ = hit.id;
    }
}

}  // namespace divse
