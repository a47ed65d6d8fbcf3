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

std::vector<Hit> TopK::take() {
    std::sort(hits_.begin(), hits_.end(), better);
    return std::exchange(hits_, {});
}

void merge(TopK* streams, std::size_t count, std::int64_t topk, float* scores, std::int64_t* ids) {
    for (std::size_t stream = 1; stream < count; ++stream) {
        for (const Hit& hit : streams[stream].take()) streams[0].offer(hit);
    }
    std::vector<Hit> hits = streams[0].take();
    hits.resize(static_cast<std::size_t>(topk), {-std::numeric_limits<float>::infinity(), -1});
    for (std::int64_t i = 0; i < topk; ++i) {
        scores[i] = hits[static_cast<std::size_t>(i)].score;
        ids[i] = hits[static_cast<std::size_t>(i)].id;
    }
}

}  // namespace divse
