"""The children of one cluster, started side by side and stopped in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

from paceline.runtime.child import Child, Observer, ProcessSpec
from paceline.runtime.process import Ready


class Supervisor:
    """Owns the children of one cluster; logs go to ``log_dir/NAME.log``."""

    def __init__(self, log_dir: Path, *, observe: Observer = lambda *_: None, grace_s: float = 10.0) -> None:
        self.log_dir, self.grace_s = log_dir, grace_s
        self.children: dict[str, Child] = {}
        self._observe = observe

    async def start(self, *specs: ProcessSpec) -> list[Ready]:
        """Start children side by side. If one fails the others are stopped and its StartFailed is raised."""
        children = []
        for spec in specs:
            assert spec.name not in self.children, spec.name
            self.children[spec.name] = Child(spec, self.log_dir / f"{spec.name}.log", self._observe)
            children.append(self.children[spec.name])
        tasks = [asyncio.create_task(child.start()) for child in children]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop every child, stage by stage."""
        for stage in sorted({child.spec.stop_stage for child in self.children.values()}):
            members = [child for child in self.children.values() if child.spec.stop_stage == stage]
            await asyncio.gather(*(child.stop(self.grace_s) for child in members))

    def kill_now(self) -> None:
        """SIGKILL everything at once, without waiting."""
        for child in self.children.values():
            child.kill_now()
