#pragma once

#include <torch/extension.h>

/// Binds the comparison of results. hybrid_rt/verification/ in Python has the records that users see.
void bind_verification(pybind11::module_& m);
