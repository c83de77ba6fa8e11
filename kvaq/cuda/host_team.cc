#include "kvaq/cuda/host_team.h"

#include <chrono>

namespace kvaq::cuda {
namespace {

// A layer of a prompt takes less; a thread that sleeps takes 200 us to wake up.
constexpr std::chrono::microseconds kLooking{2000};
constexpr int kSpins = 512;  // before the processor is given to others between two looks

void relax(int spins) noexcept {
    if (spins > kSpins) {
        std::this_thread::yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

class HostTeam::Member final : public Team {
  public:
    Member(HostTeam& team, size_t index) : team_(team), index_(index) {}
    [[nodiscard]] size_t index() const noexcept override { return index_; }
    [[nodiscard]] size_t size() const noexcept override { return team_.size_; }
    void barrier() noexcept override { team_.wait_for_all(); }

  private:
    HostTeam& team_;
    size_t index_;
};

HostTeam::HostTeam(size_t n) : size_(n) {
    threads_.reserve(n);
    for (size_t i = 1; i < n; ++i) threads_.emplace_back([this, i] { work(i); });
}

HostTeam::~HostTeam() {
    {
        const std::lock_guard lock(mutex_);
        stop_.store(true);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void HostTeam::wait_for_all() noexcept {
    const uint64_t round = barrier_round_.load(std::memory_order_acquire);
    if (n_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        n_arrived_.store(0, std::memory_order_relaxed);
        barrier_round_.fetch_add(1, std::memory_order_release);
        return;
    }
    for (int spins = 0; barrier_round_.load(std::memory_order_acquire) == round; ++spins) relax(spins);
}

bool HostTeam::wait_for_round(uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    for (int spins = 0; round_.load(std::memory_order_acquire) == seen && !stop_.load(); ++spins) {
        relax(spins);
        if (spins % 64 != 63 || std::chrono::steady_clock::now() - start < kLooking) continue;
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_.load() || round_.load(std::memory_order_acquire) != seen; });
    }
    return !stop_.load();
}

void HostTeam::work(size_t index) {
    for (uint64_t seen = 0; wait_for_round(seen);) {
        seen = round_.load(std::memory_order_acquire);
        Member member(*this, index);
        (*function_)(member);
        n_busy_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

void HostTeam::run(const std::function<void(Team&)>& function) {
    function_ = &function;
    n_busy_.store(size_ - 1, std::memory_order_relaxed);
    {
        const std::lock_guard lock(mutex_);  // a thread that is about to sleep has either seen the round or is woken
        round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    Member self(*this, 0);
    function(self);
    for (int spins = 0; n_busy_.load(std::memory_order_acquire) != 0; ++spins) relax(spins);
}

}  // namespace kvaq::cuda
