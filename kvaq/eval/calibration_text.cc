#include "kvaq/eval/calibration_text.h"

// The assembler puts the file's bytes into the program: no path to find at run time.
__asm__(
    ".pushsection .rodata\n"
    ".global kvaq_calibration_text_begin\n"
    "kvaq_calibration_text_begin:\n"
    ".incbin \"" KVAQ_CALIBRATION_TEXT
    "\"\n"
    ".global kvaq_calibration_text_end\n"
    "kvaq_calibration_text_end:\n"
    ".byte 0\n"
    ".popsection\n");

extern "C" {
extern const char kvaq_calibration_text_begin[];  // NOLINT(readability-identifier-naming): names of the assembler
extern const char kvaq_calibration_text_end[];    // NOLINT(readability-identifier-naming)
}

namespace kvaq {

std::string_view calibration_text() noexcept {
    return {kvaq_calibration_text_begin, static_cast<size_t>(kvaq_calibration_text_end - kvaq_calibration_text_begin)};
}

}  // namespace kvaq
