// The best scores of a stream: descending, equal scores by lower id, NaN last. A total order, so
// the result depends neither on the order of the stream nor on how it was divided.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace divse {

struct Hit {
    float score;
    std::int64_t id;
};

class TopK {
public:
    explicit TopK(std::int64_t topk) : topk_(static_cast<std::size_t>(topk)) {}

    // Scores of ids first_id, first_id + 1, ...
    void offer(const float* scores, std::int64_t count, std::int64_t first_id);
    void offer(Hit hit);
    // All hits of `other`, which is left empty.
    void take_from(TopK& other);
    // The best `topk`, best first or in any order; -inf with id -1 where there are fewer, at the
    // end. Leaves this empty.
    void write(float* scores, std::int64_t* ids, bool ordered = true);

private:
    void keep_best();

    std::size_t topk_;
    // More than are kept, so that a stream costs a comparison a hit and now and then a selection:
    // a heap would cost logarithmically more where hundreds are kept.
    std::vector<Hit> hits_;
    std::vector<float> scores_;  // of the hits, while the best are selected
    Hit worst_{};       // of the best when they were last selected
    bool full_ = false;  // whether there were topk then
};

}  // namespace divse
