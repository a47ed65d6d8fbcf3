// What Python may pass: every check, and views of numpy arrays without copies.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernel.h"

namespace divse {

// Sets (count, elements, dim) and the array that keeps their memory: the caller's own unless its
// last axis is not contiguous or its address is not aligned.
class SetsArgument {
public:
    SetsArgument(const std::string& name, const pybind11::object& values,
                 const pybind11::object& lengths, bool half_allowed);
    const Sets& sets() const { return sets_; }

private:
    void read_lengths(const std::string& name, const pybind11::object& lengths);

    pybind11::array values_;
    std::vector<std::int64_t> lengths_;
    Sets sets_;
};

// Floats (B, N).
class GradArgument {
public:
    GradArgument(const pybind11::object& values, std::int64_t queries, std::int64_t gallery);
    const GradScores& view() const { return view_; }

private:
    pybind11::array values_;
    GradScores view_;
};

void check_dims(const Sets& queries, const Sets& gallery);
Similarity similarity_argument(double alpha, bool log_mean);
int threads_argument(int threads);
const Kernel& kernel_argument(const std::string& isa);
std::int64_t topk_argument(std::int64_t topk, std::int64_t count);

}  // namespace divse
