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

// Keyword arguments; what was given and never asked for is refused.
class Options {
public:
    explicit Options(const pybind11::kwargs& given) : left_(given) {}

    template <class T>
    T take(const char* name, T otherwise) {
        if (!left_.contains(name)) return otherwise;
        const pybind11::object value = left_.attr("pop")(name);
        return converted<T>(name, value);
    }
    void finish() const;

private:
    template <class T>
    static T converted(const char* name, const pybind11::object& value) {
        try {
            return value.cast<T>();
        } catch (const pybind11::cast_error&) {
            throw pybind11::type_error(wrong_type(name, value));
        }
    }
    static std::string wrong_type(const char* name, const pybind11::object& value);

    pybind11::dict left_;
};

enum class Allowed { any_type_any_layout, float32_any_layout, float32_padded };

// Sets and the arrays that keep their memory: the caller's own unless the last axis is not
// contiguous or the address is not aligned. Options <name>_lengths, <name>_offsets, <name>_type.
class SetsArgument {
public:
    SetsArgument(const std::string& name, const std::string& option, const pybind11::object& values,
                 Options& options, Allowed allowed);
    const Sets& sets() const { return sets_; }

private:
    Element read_type(const pybind11::object& type, Allowed allowed) const;
    void read_lengths(const pybind11::object& lengths);
    void read_offsets(const pybind11::object& offsets);

    const std::string name_;
    pybind11::array values_, offsets_;
    std::vector<std::int64_t> lengths_;
    Sets sets_;
};

int threads_argument(Options& options);
Similarity similarity_argument(Options& options);
const Kernel& kernel_argument(Options& options);

// What every function takes.
struct Call {
    SetsArgument queries_argument, gallery_argument;
    Similarity similarity;
    const Kernel& kernel;
    int threads;

    Call(const pybind11::object& queries, const pybind11::object& gallery, Options& options,
         Allowed allowed);
    const Sets& queries() const { return queries_argument.sets(); }
    const Sets& gallery() const { return gallery_argument.sets(); }
};

// (ceil(N / 8),) bytes, or none.
class ExcludedArgument {
public:
    ExcludedArgument(const pybind11::object& values, std::int64_t gallery);
    const std::uint8_t* bits() const {
        return values_ ? static_cast<const std::uint8_t*>(values_->data()) : nullptr;
    }

private:
    std::optional<pybind11::array> values_;
};

class CandidatesArgument {
public:
    CandidatesArgument(const pybind11::object& values, std::int64_t queries, std::int64_t gallery);
    Candidates view() const { return {values_.data(), values_.shape(1)}; }

private:
    pybind11::array_t<std::int64_t, pybind11::array::c_style> values_;
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

// (N * L, round_up(B, 16) * K) floats that `scores` kept, or none.
class CosinesArgument {
public:
    CosinesArgument(const pybind11::object& values, const Sets& queries, const Sets& gallery);
    const Cosines& view() const { return view_; }
    static pybind11::array zeros(const Sets& queries, const Sets& gallery);

private:
    pybind11::object values_;
    Cosines view_;
};

// A number from 1 to `most`, which is what `limit` says.
std::int64_t count_argument(const char* name, std::int64_t value, std::int64_t most,
                            const char* limit);
std::int64_t topk_argument(std::int64_t topk, std::int64_t sets);

}  // namespace divse
