"""The driver obeys the scheduler in real time: one asyncio loop, one task per dispatch."""
