#include "kvaq/cuda/host_team.h"

namespace kvaq::cuda {

class HostTeam::Member final : public Team {
  public:
    Member(HostTeam& team, size_t index) : team_(team), index_(index) {}
    [[nodiscard]] size_t index() const noexcept override { return index_; }
    [[nodiscard]] size_t size() const noexcept override { return team_.threads_.size() + 1; }
    void barrier() noexcept override { team_.wait_for_all(); }

  private:
    HostTeam& team_;
    size_t index_;
};

HostTeam::HostTeam(size_t n) {
    threads_.reserve(n);
    for (size_t i = 1; i < n; ++i) threads_.emplace_back([this, i] { work(i); });
}

HostTeam::~HostTeam() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void HostTeam::wait_for_all() {
    std::unique_lock lock(mutex_);
    const uint64_t round = barrier_round_;
    if (++n_arrived_ == threads_.size() + 1) {
        n_arrived_ = 0;
        ++barrier_round_;
        barrier_.notify_all();
        return;
    }
    barrier_.wait(lock, [&] { return barrier_round_ != round; });
}

void HostTeam::work(size_t index) {
    uint64_t seen = 0;
    while (true) {
        const std::function<void(Team&)>* function = nullptr;
        {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || round_ != seen; });
            if (stop_) return;
            seen = round_;
            function = function_;
        }
        Member member(*this, index);
        (*function)(member);
        const std::lock_guard lock(mutex_);
        if (--n_busy_ == 0) done_.notify_one();
    }
}

void HostTeam::run(const std::function<void(Team&)>& function) {
    {
        const std::lock_guard lock(mutex_);
        function_ = &function;
        n_busy_ = threads_.size();
        ++round_;
    }
    wake_.notify_all();
    Member self(*this, 0);
    function(self);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return n_busy_ == 0; });
}

}  // namespace kvaq::cuda
