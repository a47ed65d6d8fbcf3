// The names of csrc/cuda/hopper.h on a CPU: a cluster of blocks whose threads are fibers.
//
// The order of everything that the machine leaves open is drawn at random: which thread goes on,
// when a copy arrives, whether products happen when they are committed or only when they are waited
// for. Memory starts as NaN. So a wait that is missing, a stage that is released too early or a
// barrier that counts wrongly shows as a wrong score or as a deadlock, which is an error.
// Layouts (fragments, swizzle, operands, boxes) follow the PTX manual.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "../../csrc/cuda/launch.h"

#define DIVSE_DEVICE inline

namespace divse::hopper {

struct Half {
    std::uint16_t bits;
    explicit operator float() const {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        const float size = exponent ? std::ldexp(1024.0f + fraction, exponent - 25)
                                    : std::ldexp(static_cast<float>(fraction), -24);
        return bits & 0x8000 ? -size : size;
    }
};

struct Bfloat16 {
    std::uint16_t bits;
    explicit operator float() const {
        const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        return value;
    }
};

struct Map {
    const char* values;
    Shape shape;
};

struct alignas(8) Barrier {
    std::int32_t bytes;  // that copies still owe
    std::int8_t pending, arrivals, parity, started;
};

class Machine {
public:
    static constexpr int block_threads = 384, fibers = cluster * block_threads;
    static constexpr int base = 1040;  // address of the first byte: not aligned as tiles need it

    Machine(int shared_bytes, int index, int count, unsigned seed)
        : index(index), count(count), random(seed), shared_bytes_(shared_bytes) {
        for (auto& memory : shared_) {
            memory.resize(shared_bytes / 4 + 4, std::numeric_limits<float>::quiet_NaN());
        }
    }

    // Run `program` in every thread of the cluster.
    void run(const std::function<void()>& program);

    int block() const { return current_ / block_threads; }
    int thread() const { return current_ % block_threads; }
    char* shared(int block) { return reinterpret_cast<char*>(shared_[block].data()); }

    std::int64_t offset(const void* pointer) {
        const std::int64_t at = static_cast<const char*>(pointer) - shared(block());
        if (at < 0 || at >= shared_bytes_) throw std::logic_error("no shared memory of this block");
        return at;
    }
    template <typename T>
    T* in_block(T* pointer, int block) {
        if (has_left(block)) throw std::logic_error("a block has left already");
        return reinterpret_cast<T*>(shared(block) + offset(pointer));
    }

    void wait_until(const std::function<bool()>& holds) {
        while (!holds()) yield();
    }
    bool coin() { return (random() & 1) != 0; }

    // A meeting of `size` threads: returns once all have come as often as the caller.
    void meet(int place, int size, bool stays = true) {
        Meeting& meeting = meetings_[place];
        const int generation = meeting.generation;
        if (++meeting.came == size) {
            meeting.came = 0;
            ++meeting.generation;
        } else if (stays) {
            wait_until([&] { return meeting.generation != generation; });
        }
        progress_ = true;
    }
    static constexpr int warps = fibers / 32, named = 16;
    int of_warp() const { return current_ / 32; }
    int of_named(int id) const { return warps + block() * named + id; }
    int of_cluster() const { return warps + cluster * named; }

    bool has_left(int block) const { return left_[block] == block_threads; }
    void later(std::function<void()> copy) { copies_.push_back(std::move(copy)); }
    void settle(Barrier* barrier) {
        progress_ = true;
        if (barrier->pending == 0 && barrier->bytes == 0) {
            barrier->parity ^= 1;
            barrier->pending = barrier->arrivals;
        }
    }

    struct Fiber {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        bool done = false;
        std::vector<std::function<void()>> open;               // not committed
        std::vector<std::vector<std::function<void()>>> groups;  // committed, not done
        float given[2];
        int exchanges = 0;
    };
    Fiber& self() { return all_[current_]; }
    Fiber& lane(int lane) { return all_[current_ / 32 * 32 + lane]; }

    const int index, count;
    std::mt19937 random;

private:
    struct Meeting {
        int came = 0, generation = 0;
    };
    void yield() { swapcontext(&all_[current_].context, &scheduler_); }
    void arrive_copy() {
        const std::size_t i = random() % copies_.size();
        const auto copy = std::move(copies_[i]);
        copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(i));
        copy();
        progress_ = true;
    }
    static void enter();

    const int shared_bytes_;
    std::vector<float> shared_[cluster];
    std::vector<Fiber> all_;
    std::vector<std::function<void()>> copies_;
    Meeting meetings_[warps + cluster * named + 1];
    ucontext_t scheduler_;
    std::function<void()> program_;
    std::exception_ptr failure_;
    int current_ = 0, left_[cluster] = {};  // threads of each block that are at their end
    int paused_ = -1;  // a block, or none
    bool progress_ = false;
};

inline thread_local Machine* machine = nullptr;

inline void Machine::enter() {
    Machine& m = *machine;
    try {
        m.program_();
    } catch (...) {
        m.failure_ = std::current_exception();
    }
    m.self().done = true;
    m.progress_ = true;
    m.yield();
}

inline void Machine::run(const std::function<void()>& program) {
    constexpr std::size_t stack_bytes = 128 << 10;
    machine = this;
    program_ = program;
    all_ = std::vector<Fiber>(fibers);
    std::vector<int> order(fibers);
    for (int i = 0; i < fibers; ++i) {
        Fiber& fiber = all_[order[i] = i];
        fiber.stack = std::make_unique<char[]>(stack_bytes);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, &Machine::enter, 0);
    }
    for (int idle = 0, left = fibers; left > 0;) {
        progress_ = false;
        // Some threads run ahead of others, and now and then a block of the other.
        if (random() % 32 == 0) paused_ = static_cast<int>(random() % (cluster + 1)) - 1;
        std::shuffle(order.begin(), order.end(), random);
        const int part = coin() ? fibers : static_cast<int>(random() % fibers) + 1;
        for (int i = 0; i < part && !failure_; ++i) {
            current_ = order[i];
            if (self().done || block() == paused_) continue;
            swapcontext(&scheduler_, &self().context);
            if (self().done) {
                --left;
                ++left_[block()];
            }
        }
        if (failure_) std::rethrow_exception(failure_);
        if (!copies_.empty() && (coin() || !progress_)) arrive_copy();
        if (!progress_ && paused_ >= 0) {
            paused_ = -1;
            continue;
        }
        idle = progress_ ? 0 : idle + 1;
        if (idle > 100) throw std::runtime_error("deadlock");
    }
    if (!copies_.empty()) throw std::runtime_error("a block left before its copies arrived");
}

// ---- who and where -----------------------------------------------------------------------------

inline int thread() { return machine->thread(); }
inline int rank() { return machine->block(); }
inline int cluster_index() { return machine->index; }
inline int cluster_count() { return machine->count; }
inline std::uint32_t address(const void* shared) {
    return static_cast<std::uint32_t>(machine->offset(shared)) + Machine::base;
}
template <int>
void fewer_registers() {}
template <int>
void more_registers() {}

// ---- barriers ----------------------------------------------------------------------------------

inline void start(Barrier* barrier, int arrivals) {
    const auto count = static_cast<std::int8_t>(arrivals);
    *barrier = {0, count, count, 0, 1};
}
inline void publish_barriers() {}
inline void meet_cluster() {
    machine->meet(machine->of_warp(), 32);
    machine->meet(machine->of_cluster(), Machine::fibers);
}

inline void arrive_at(Barrier* barrier) {
    if (barrier->started != 1) throw std::logic_error("a barrier was used before its start");
    if (--barrier->pending < 0) throw std::logic_error("a barrier got too many arrivals");
    machine->settle(barrier);
}
inline void expect(Barrier* barrier, int bytes) {
    barrier->bytes += bytes;
    arrive_at(barrier);
}
inline void arrive(Barrier* barrier, int rank) { arrive_at(machine->in_block(barrier, rank)); }
inline void wait(Barrier* barrier, int parity) {
    if (barrier->started != 1) throw std::logic_error("a barrier was used before its start");
    machine->wait_until([=] { return barrier->parity != parity; });
}
inline void wait_for_turn(int warpgroup) { machine->meet(machine->of_named(1 + warpgroup), 256); }
inline void pass_turn(int to_warpgroup) {
    machine->meet(machine->of_named(1 + to_warpgroup), 256, false);
}

// ---- copies --------------------------------------------------------------------------------------

inline void prefetch(const Map*) {}

// A box at `first`, into shared memory at `to`: zeros outside, 16-byte units of a row swizzled.
inline int copy_box(char* to, std::uint32_t at, const Map& map, const int (&first)[4]) {
    const Shape& s = map.shape;
    int row = 0;
    for (unsigned w = 0; w < s.box[3]; ++w) {
        for (unsigned z = 0; z < s.box[2]; ++z) {
            for (unsigned y = 0; y < s.box[1]; ++y, ++row) {
                for (unsigned x = 0; x < s.box[0]; ++x) {
                    const std::int64_t c[4] = {first[0] + x, first[1] + y, first[2] + z,
                                               first[3] + w};
                    bool inside = true;
                    std::int64_t offset = value_bytes * c[0];
                    for (int i = 0; i < 4; ++i) {
                        inside = inside && c[i] >= 0 && c[i] < static_cast<std::int64_t>(s.sizes[i]);
                        if (i > 0) offset += c[i] * static_cast<std::int64_t>(s.strides[i - 1]);
                    }
                    const std::uint32_t plain = at + row * 128 + value_bytes * x;
                    const std::uint32_t place = plain ^ (plain >> 7 & 7) << 4;
                    char* value = to + (static_cast<std::int64_t>(place) - at);
                    if (inside) {
                        std::memcpy(value, map.values + offset, value_bytes);
                    } else {
                        std::memset(value, 0, value_bytes);
                    }
                }
            }
        }
    }
    return row * 128;
}

inline void copy_later(void* to, const Map* map, Barrier* barrier, const int (&first)[4],
                       unsigned blocks) {
    const std::uint32_t at = address(to);
    if (at % 1024 != 0) throw std::logic_error("a box must begin at a multiple of 1024");
    for (int block = 0; block < cluster; ++block) {
        if (!(blocks >> block & 1)) continue;
        char* there = machine->in_block(static_cast<char*>(to), block);
        Barrier* told = machine->in_block(barrier, block);
        const int c[4] = {first[0], first[1], first[2], first[3]};
        machine->later([=] {
            if (machine->has_left(block)) throw std::logic_error("a block has left already");
            if (told->started != 1) throw std::logic_error("a copy came before its barrier's start");
            told->bytes -= copy_box(there, at, *map, c);
            machine->settle(told);
        });
    }
}

inline void copy(void* to, const Map* map, Barrier* barrier, int x, int y, int z) {
    copy_later(to, map, barrier, {x, y, z, 0}, 1u << rank());
}
inline void copy_to_all(void* to, const Map* map, Barrier* barrier, int x, int y, int z, int w,
                        std::uint16_t blocks) {
    copy_later(to, map, barrier, {x, y, z, w}, blocks);
}

// ---- products ------------------------------------------------------------------------------------

inline std::uint64_t operand(const void* shared, int stride) {
    return static_cast<std::uint64_t>(stride >> 4) << 32 | (address(shared) & 0x3ffff) >> 4;
}

// 16 values of a row of an operand, which may begin anywhere within its 128 bytes: the swizzle is
// one of addresses.
template <typename T>
void values_of(std::uint64_t operand, int row, float (&values)[16]) {
    const auto start = static_cast<std::uint32_t>(operand & 0x3fff) << 4;
    const auto stride = static_cast<std::uint32_t>(operand >> 32 & 0x3fff) << 4;
    const char* shared = machine->shared(rank()) - Machine::base;
    for (int k = 0; k < 16; ++k) {
        const std::uint32_t plain = start + row / 8 * stride + row % 8 * 128 + value_bytes * k;
        T value;
        std::memcpy(&value, shared + (plain ^ (plain >> 7 & 7) << 4), sizeof value);
        values[k] = static_cast<float>(value);
    }
}

inline void settle(float (&)[2][64]) {}
inline void begin_products() {}

template <typename T>
void multiply(float (&sums)[64], std::uint64_t a, std::uint64_t b, int add) {
    float* const all = sums;
    machine->self().open.push_back([=] {
        const int t = thread() % 128, lane = t % 32;
        float rows[2][16];
        for (int h = 0; h < 2; ++h) values_of<T>(a, 16 * (t / 32) + lane / 4 + 8 * h, rows[h]);
        for (int j = 0; j < 16; ++j) {
            for (int l = 0; l < 2; ++l) {
                float column[16];
                values_of<T>(b, 8 * j + 2 * (lane % 4) + l, column);
                for (int h = 0; h < 2; ++h) {
                    float& sum = all[4 * j + 2 * h + l];
                    if (!add) sum = 0.0f;
                    for (int k = 0; k < 16; ++k) sum += rows[h][k] * column[k];
                }
            }
        }
    });
}

inline void finish_groups(std::size_t pending) {
    auto& groups = machine->self().groups;
    while (groups.size() > pending) {
        for (const auto& product : groups.front()) product();
        groups.erase(groups.begin());
    }
}
inline void commit_products() {
    auto& fiber = machine->self();
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
    if (machine->coin()) finish_groups(0);
}
template <int Pending>
void wait_for_products() {
    finish_groups(Pending);
    machine->meet(machine->of_warp(), 32);
}

// ---- numbers -------------------------------------------------------------------------------------

inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }
inline int bits_of(float x) {
    int bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float from_bits(int bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline float exchange(float x, int mask) {
    auto& fiber = machine->self();
    const int slot = fiber.exchanges++ % 2;
    fiber.given[slot] = x;
    machine->meet(machine->of_warp(), 32);
    return machine->lane((thread() % 32) ^ mask).given[slot];
}

}  // namespace divse::hopper
