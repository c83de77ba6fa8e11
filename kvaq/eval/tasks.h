#pragma once

#include <memory>

#include "kvaq/eval/suite_task.h"

namespace kvaq {

// One function per task of the suite (suite_task.h), each in the file of its name. All throw Error on bad data or lengths.

/// Perplexity, KL, top-1 and top-10 agreement over the positions of long chunks of a text.
[[nodiscard]] std::unique_ptr<SuiteTask> make_depth_task(const TaskRequest& request, const llama_model* model);
/// HellaSwag's four endings, by log p per token and per character.
[[nodiscard]] std::unique_ptr<SuiteTask> make_hellaswag_task(const TaskRequest& request, const llama_model* model);
/// GSM8K by greedy generation.
[[nodiscard]] std::unique_ptr<SuiteTask> make_gsm8k_task(const TaskRequest& request, const llama_model* model);
/// One number in a long text.
[[nodiscard]] std::unique_ptr<SuiteTask> make_passkey_task(const TaskRequest& request, const llama_model* model);
/// Eight numbers in a long text, each asked for.
[[nodiscard]] std::unique_ptr<SuiteTask> make_needle_task(const TaskRequest& request, const llama_model* model);
/// A sequence that comes twice: random tokens, and lines of a list.
[[nodiscard]] std::unique_ptr<SuiteTask> make_copy_task(const TaskRequest& request, const llama_model* model);
/// A tool call in JSON after many of them.
[[nodiscard]] std::unique_ptr<SuiteTask> make_json_task(const TaskRequest& request, const llama_model* model);
/// Tokens until greedy text parts from f16's.
[[nodiscard]] std::unique_ptr<SuiteTask> make_diverge_task(const TaskRequest& request, const llama_model* model);
/// The second turn of a chat.
[[nodiscard]] std::unique_ptr<SuiteTask> make_chat_task(const TaskRequest& request, const llama_model* model);

}  // namespace kvaq
