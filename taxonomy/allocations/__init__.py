"""Which heads, channels and layers a plan keeps: its candidates, the choice, and plan.json.

In: losses and times of what each layer may keep. Out: `allocation_plan.PlanOfLayers`.
Exports: `allocation.Allocation`, `allocation_candidates.candidates`, `allocation_plan`.
"""
