#pragma once

#include <memory>
#include <utility>

#include "kvaq/base/attention_call.h"

namespace kvaq {

/// A handler before another one, which does the work: for those that look at or change what passes through. Every call is handed on but seq_add, which is
/// refused as handlers do that cannot shift.
class ForwardingHandler : public AttentionHandler {
  public:
    explicit ForwardingHandler(std::unique_ptr<AttentionHandler> inner) : inner_(std::move(inner)) {}
    bool begin(std::span<const BatchToken> tokens) override { return inner_->begin(tokens); }
    void attend(const AttentionCall& call, Team& team) noexcept override { inner_->attend(call, team); }
    void end() noexcept override { inner_->end(); }
    void rollback() noexcept override { inner_->rollback(); }
    void clear() noexcept override { inner_->clear(); }
    bool seq_rm(int32_t seq, int32_t p0, int32_t p1) override { return inner_->seq_rm(seq, p0, p1); }
    bool seq_cp(int32_t src, int32_t dst, int32_t p0, int32_t p1) override { return inner_->seq_cp(src, dst, p0, p1); }
    void seq_keep(int32_t seq) noexcept override { inner_->seq_keep(seq); }
    [[nodiscard]] int32_t seq_pos_min(int32_t seq) const noexcept override { return inner_->seq_pos_min(seq); }
    [[nodiscard]] int32_t seq_pos_max(int32_t seq) const noexcept override { return inner_->seq_pos_max(seq); }

  protected:
    std::unique_ptr<AttentionHandler> inner_;
};

}  // namespace kvaq
