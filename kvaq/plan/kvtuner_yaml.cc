#include "kvaq/plan/kvtuner_yaml.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <sstream>

#include "kvaq/base/error.h"

namespace kvaq {
namespace {

struct Line {
    size_t number = 0;
    size_t indent = 0;
    std::string key;
    std::string value;
};

std::string stripped(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t\r");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

template <typename T>
std::optional<T> number_of(const std::string& text) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
}

class Reader {
  public:
    Reader(const std::string& text, const std::string& what) : text_(text), what_(what) {}

    std::vector<KvtunerEntry> read() {
        std::istringstream stream(text_);
        std::string raw;
        for (size_t number = 1; std::getline(stream, raw); ++number) {
            raw = raw.substr(0, raw.find('#'));
            if (stripped(raw).empty() || stripped(raw) == "---") continue;
            take(split(number, raw));
        }
        close();
        if (entries_.empty()) fail(1, "at least one layer", "none");
        return entries_;
    }

  private:
    [[noreturn]] void fail(size_t line, const std::string& wanted, const std::string& found) const {
        throw Error(ErrorCode::kInvalidArgument, fmt::format("{}, line {}", what_, line), wanted, found,
                    "KVTuner's files hold 'LAYER:' and below it 'nbits_key: N' and 'nbits_value: N'");
    }

    [[nodiscard]] Line split(size_t number, const std::string& raw) const {
        const size_t indent = raw.find_first_not_of(' ');
        if (raw[indent] == '\t') fail(number, "spaces for indentation", "a tab");
        const std::string body = stripped(raw);
        const size_t colon = body.find(':');
        if (colon == std::string::npos || colon == 0) fail(number, "'key: value' or 'key:'", "'" + body + "'");
        std::string key = stripped(body.substr(0, colon));
        if (key.size() >= 2 && (key.front() == '"' || key.front() == '\'') && key.back() == key.front())
            key = key.substr(1, key.size() - 2);
        return {.number = number, .indent = indent, .key = key, .value = stripped(body.substr(colon + 1))};
    }

    void take(const Line& line) {
        if (line.value.empty()) {
            const std::optional<int32_t> index = number_of<int32_t>(line.key);
            if (!index || *index < 0) fail(line.number, "the number of a layer or head", "'" + line.key + "'");
            if (line.indent == 0) {
                close();
                for (const KvtunerEntry& entry : entries_) {
                    if (entry.layer == *index)
                        fail(line.number, "each layer once", fmt::format("layer {} again", *index));
                }
                start(line, *index, -1);
                layer_has_bits_ = layer_has_heads_ = false;
            } else {
                if (layer_line_ == 0) fail(line.number, "a layer before its heads", "'" + line.key + ":'");
                if (layer_has_bits_) fail(line.number, "heads, or bits of the whole layer", "both");
                if (layer_has_heads_) {
                    close();
                    if (line.indent != head_indent_)
                        fail(line.number, "all heads indented alike", fmt::format("{} spaces", line.indent));
                    for (const KvtunerEntry& entry : entries_) {
                        if (entry.layer == layer_ && entry.head == *index)
                            fail(line.number, "each head once", fmt::format("head {} again", *index));
                    }
                }
                head_indent_ = line.indent;
                layer_has_heads_ = true;
                start(line, layer_, *index);
            }
            return;
        }
        if (line.key != "nbits_key" && line.key != "nbits_value")
            fail(line.number, "nbits_key or nbits_value", "'" + line.key + "'");
        if (layer_line_ == 0) fail(line.number, "a layer before its bits", "'" + line.key + "'");
        if (line.indent <= (layer_has_heads_ ? head_indent_ : 0))
            fail(line.number, "bits indented below their layer or head", fmt::format("{} spaces", line.indent));
        const std::optional<double> bits = number_of<double>(line.value);
        if (!bits) fail(line.number, "a number of bits", "'" + line.value + "'");
        std::optional<double>& slot = line.key == "nbits_key" ? key_ : value_;
        if (slot) fail(line.number, line.key + " once", "twice");
        slot = bits;
        if (head_ < 0) layer_has_bits_ = true;
    }

    void start(const Line& line, int32_t layer, int32_t head) {
        layer_line_ = line.number;
        layer_ = layer;
        head_ = head;
        key_.reset();
        value_.reset();
    }

    /// The layer or head that was being read is complete.
    void close() {
        if (layer_line_ == 0) return;
        if (!key_ || !value_)
            fail(layer_line_, "nbits_key and nbits_value below it",
                 key_ ? "nbits_key alone" : (value_ ? "nbits_value alone" : "neither"));
        entries_.push_back({.layer = layer_, .head = head_, .key_bits = *key_, .value_bits = *value_});
    }

    const std::string& text_;
    const std::string& what_;
    std::vector<KvtunerEntry> entries_;
    size_t layer_line_ = 0;
    int32_t layer_ = -1;
    int32_t head_ = -1;
    size_t head_indent_ = 0;
    bool layer_has_bits_ = false;
    bool layer_has_heads_ = false;
    std::optional<double> key_, value_;
};

}  // namespace

bool looks_like_kvtuner_yaml(const std::string& text) {
    std::istringstream stream(text);
    std::string line;
    while (std::getline(stream, line)) {
        const std::string body = stripped(line.substr(0, line.find('#')));
        if (body.empty() || body == "---") continue;
        std::string key = body.substr(0, body.find(':'));
        if (key.size() == body.size()) return false;
        std::erase_if(key, [](char c) { return c == '"' || c == '\'' || c == ' '; });
        return number_of<int32_t>(key).has_value();
    }
    return false;
}

std::vector<KvtunerEntry> parse_kvtuner_yaml(const std::string& text, const std::string& what) {
    return Reader(text, what).read();
}

}  // namespace kvaq
