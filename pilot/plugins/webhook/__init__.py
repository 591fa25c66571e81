"""Webhook: every event of a node as a signed HTTP request to one URL (plugin, L11)."""

from pilot.plugins.webhook.service import WebhookHost, WebhookService, WebhookStats

__all__ = ["WebhookHost", "WebhookService", "WebhookStats"]
