#include "kvaq/eval/made_up_text.h"

#include <fmt/format.h>

namespace kvaq {
namespace {

constexpr std::array kNames = {"Anna",  "Bruno", "Clara", "David", "Elena", "Felix", "Grace",
                               "Henry", "Irene", "Jacob", "Karen", "Louis", "Maria", "Nolan",
                               "Olga",  "Peter", "Rosa",  "Simon", "Tanya", "Victor"};
constexpr std::array kPlaces = {"Lisbon", "Oslo",   "Cairo",  "Lima",   "Dublin", "Madrid", "Vienna", "Prague",
                                "Athens", "Berlin", "Warsaw", "Geneva", "Boston", "Denver", "Havana", "Milan",
                                "Naples", "Quebec", "Sydney", "Tokyo",  "Zagreb", "Riga",   "Turin",  "Bergen"};
constexpr std::array kThings = {"lamp",   "ladder", "kettle", "basket", "clock",  "letter", "bottle",  "hammer",
                                "mirror", "pillow", "button", "candle", "ticket", "barrel", "blanket", "drawer"};
constexpr std::array kColours = {"red", "blue", "green", "white", "black", "brown", "pink", "gray"};
constexpr std::array kAnimals = {"cat", "dog", "horse", "rabbit", "parrot", "goat", "turtle", "duck"};
constexpr std::array kDays = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"};
constexpr std::array kKinds = {"quiet", "old",   "young", "tired",   "clever", "careful",  "honest", "busy",
                               "tall",  "proud", "kind",  "patient", "shy",    "cheerful", "stern",  "curious"};
constexpr std::array kPeople = {"baker",   "sailor",  "teacher", "farmer", "doctor", "painter", "driver", "singer",
                                "builder", "student", "lawyer",  "miner",  "tailor", "hunter",  "clerk",  "nurse"};
constexpr std::array kDeeds = {"carried", "bought", "found", "repaired", "sold",  "moved", "hid",     "borrowed",
                               "painted", "lost",   "took",  "brought",  "threw", "kept",  "cleaned", "pushed"};
constexpr std::array kWays = {"to the harbour",   "behind the mill",  "across the bridge", "into the garden",
                              "near the station", "under the stairs", "past the market",   "beside the river",
                              "from the attic",   "along the road",   "over the fence",    "inside the church"};
constexpr std::array kTimes = {"in the morning", "after lunch",     "before the rain", "last winter",
                               "at midnight",    "during the fair", "on the way home", "without a word"};

uint64_t hash(std::string_view text) {  // FNV-1a
    uint64_t h = 1469598103934665603ULL;
    for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
    return h;
}

}  // namespace

MadeUpText::MadeUpText(uint64_t seed, std::string_view stream, uint64_t number) {
    std::seed_seq sequence{static_cast<uint32_t>(seed),         static_cast<uint32_t>(seed >> 32),
                           static_cast<uint32_t>(hash(stream)), static_cast<uint32_t>(hash(stream) >> 32),
                           static_cast<uint32_t>(number),       static_cast<uint32_t>(number >> 32)};
    random_.seed(sequence);
}

uint32_t MadeUpText::integer(uint32_t low, uint32_t high) {
    return low + static_cast<uint32_t>(random_() % (uint64_t{high} - low + 1));
}

std::string MadeUpText::first_name() { return pick(kNames); }
std::string MadeUpText::place() { return pick(kPlaces); }
std::string MadeUpText::thing() { return pick(kThings); }
std::string MadeUpText::colour() { return pick(kColours); }
std::string MadeUpText::animal() { return pick(kAnimals); }
std::string MadeUpText::weekday() { return pick(kDays); }

std::string MadeUpText::sentence() {
    // One call a statement: the order of a call's arguments is not fixed by the language.
    const std::string kind = pick(kKinds);
    const std::string who = pick(kPeople);
    const std::string deed = pick(kDeeds);
    const std::string colour_word = colour();
    const std::string object = thing();
    const std::string way = pick(kWays);
    if (integer(0, 1) == 0) return fmt::format("The {} {} {} a {} {} {}.", kind, who, deed, colour_word, object, way);
    const std::string time = pick(kTimes);
    return fmt::format("A {} {} {} the {} {} {}.", kind, who, deed, object, way, time);
}

std::string MadeUpText::sentences(size_t n) {
    std::string text;
    for (size_t i = 0; i < n; ++i) text += sentence() + " ";
    return text;
}

std::string place_name(size_t index) { return kPlaces[index % kPlaces.size()]; }

}  // namespace kvaq
