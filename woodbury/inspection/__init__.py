"""Inspection: how good the estimates of a network's curvature are, and when to trust them."""

from woodbury.inspection.api import inspect as inspect
from woodbury.inspection.curvatures import Curvatures as Curvatures
from woodbury.inspection.curvatures import estimate_curvatures as estimate_curvatures
from woodbury.inspection.direction import LossAlong as LossAlong
from woodbury.inspection.direction import loss_along as loss_along
from woodbury.inspection.findings import Inspection as Inspection
from woodbury.inspection.forecast_calibration import calibrate_forecast as calibrate_forecast
from woodbury.inspection.forecast_report import ForecastCalibration as ForecastCalibration
from woodbury.inspection.hessian_comparison import HessianComparison as HessianComparison
from woodbury.inspection.hessian_comparison import compare_with_hessian as compare_with_hessian
from woodbury.inspection.sensitivity_report import Sensitivity as Sensitivity
from woodbury.inspection.settings_tried import sensitivity as sensitivity
