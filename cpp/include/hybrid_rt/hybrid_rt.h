#pragma once

// Everything that a program needs to load and check bundles. A backend includes hybrid_rt/plugin/backend.h instead.

#include "hybrid_rt/backends.h"
#include "hybrid_rt/bundle.h"
#include "hybrid_rt/class_names.h"
#include "hybrid_rt/detections.h"
#include "hybrid_rt/detector.h"
#include "hybrid_rt/devices.h"
#include "hybrid_rt/engine.h"
#include "hybrid_rt/engine_choice.h"
#include "hybrid_rt/error.h"
#include "hybrid_rt/latency.h"
#include "hybrid_rt/log.h"
#include "hybrid_rt/message.h"
#include "hybrid_rt/opened_engine.h"
#include "hybrid_rt/segment.h"
#include "hybrid_rt/signature.h"
#include "hybrid_rt/specs.h"
#include "hybrid_rt/thresholds.h"
#include "hybrid_rt/verify.h"

/// \namespace hybrid_rt
/// The whole interface: bundles, detectors, verification, and what plug-ins implement.
