// Included before everything in stress programs: TKJAX_CALL means the one instruction set that they are compiled for.
#pragma once

#include "isa.h"

#undef TKJAX_CALL
#define TKJAX_CALL(name, ...) (::tkjax::TKJAX_ISA::name(__VA_ARGS__))
