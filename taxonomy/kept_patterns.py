"""Patterns of secrets, as detect-secrets 1.5.0 has them, with the words that name a secret.

Copyright Yelp Inc., Apache License 2.0, https://github.com/Yelp/detect-secrets, read in 2026-12.
tests/taxonomy/secret_rules.py writes this file, and a test compares it with the package. Rules
whose time grows with the square of a text are not here: `taxonomy/scrub.py` has its own for them.
"""

from __future__ import annotations

# Each is the name of a rule, the flags of `re`, and the pattern.
KEPT_PATTERNS = (
    ("Artifactory", 0,
     '(?:\\s|=|:|"|^)AKC[a-zA-Z0-9]{10,}(?:\\s|"|$)'),
    ("Artifactory", 0,
     '(?:\\s|=|:|"|^)AP[\\dABCDEF][a-zA-Z0-9]{8,}(?:\\s|"|$)'),
    ("AWSKey", 0,
     "(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}"),
    ("AWSKey", 2,
     'aws.{0,20}?(?:key|pwd|pw|password|pass|token).{0,20}?[\\\'\\"]([0-9a-zA-Z/+]{40})[\\'
     '\'\\"]'),
    ("AzureStorageKey", 0,
     "AccountKey=[a-zA-Z0-9+\\/=]{88}"),
    ("BasicAuth", 0,
     "://[^:/\\?\\#\\[\\]@!\\$\\&'\\(\\)\\*\\+,;=\\s]+:([^:/\\?\\#\\[\\]@!\\$\\&'\\(\\)\\*\\+,;=\\s]+)@"),
    ("Cloudant", 2,
     '(?:(?<=\\W)|(?<=^))(?:\\[|)(?:"|\\\'|)(?:cloudant|cl|clou)(?:_|-|)(?:api|)(?:key|pwd'
     '|pw|password|pass|token)(?:"|\\\'|)(?:\\]|)(?: *)(?:=|:|:=|=>| +|::)(?: *)(?:"|\\\'|)'
     '([0-9a-f]{64})(?:"|\\\'|)'),
    ("Cloudant", 2,
     '(?:(?<=\\W)|(?<=^))(?:\\[|)(?:"|\\\'|)(?:cloudant|cl|clou)(?:_|-|)(?:api|)(?:key|pwd'
     '|pw|password|pass|token)(?:"|\\\'|)(?:\\]|)(?: *)(?:=|:|:=|=>| +|::)(?: *)(?:"|\\\'|)'
     '([a-z]{24})(?:"|\\\'|)'),
    ("Cloudant", 2,
     "(?:https?\\:\\/\\/)[\\w\\-]+\\:([0-9a-f]{64})\\@[\\w\\-]+\\.cloudant\\.com"),
    ("Cloudant", 2,
     "(?:https?\\:\\/\\/)[\\w\\-]+\\:([a-z]{24})\\@[\\w\\-]+\\.cloudant\\.com"),
    ("DiscordBotToken", 0,
     "[MNO][a-zA-Z\\d_-]{23,25}\\.[a-zA-Z\\d_-]{6}\\.[a-zA-Z\\d_-]{27}"),
    ("GitHubToken", 0,
     "(ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9_]{36}"),
    ("GitLabToken", 0,
     "(glpat|gldt|glft|glsoat|glrt)-[A-Za-z0-9_\\-]{20,50}(?!\\w)"),
    ("GitLabToken", 0,
     "GR1348941[A-Za-z0-9_\\-]{20,50}(?!\\w)"),
    ("GitLabToken", 0,
     "glcbt-([0-9a-fA-F]{2}_)?[A-Za-z0-9_\\-]{20,50}(?!\\w)"),
    ("GitLabToken", 0,
     "glimt-[A-Za-z0-9_\\-]{25}(?!\\w)"),
    ("GitLabToken", 0,
     "glptt-[A-Za-z0-9_\\-]{40}(?!\\w)"),
    ("GitLabToken", 0,
     "glagent-[A-Za-z0-9_\\-]{50,1024}(?!\\w)"),
    ("GitLabToken", 0,
     "gloas-[A-Za-z0-9_\\-]{64}(?!\\w)"),
    ("IbmCloudIam", 2,
     '(?:(?<=\\W)|(?<=^))(?:\\[|)(?:"|\\\'|)(?:ibm(?:_|-|)cloud(?:_|-|)iam|cloud(?:_|-|)ia'
     "m|ibm(?:_|-|)cloud|ibm(?:_|-|)iam|ibm|iam|cloud|)(?:_|-|)(?:api|)(?:_|-|)(?:key|"
     'pwd|password|pass|token)(?:"|\\\'|)(?:\\]|)(?: *)(?:=|:|:=|=>| +|::)(?: *)(?:"|\\\'|)'
     '([a-zA-Z0-9_\\-]{44}(?![a-zA-Z0-9_\\-]))(?:"|\\\'|)'),
    ("IbmCosHmac", 2,
     '(?:(?<=\\W)|(?<=^))(?:\\[|)(?:"|\\\'|)(?:(?:ibm)?[-_]?cos[-_]?(?:hmac)?|)(?:_|-|)(?:'
     'secret[-_]?(?:access)?[-_]?key)(?:"|\\\'|)(?:\\]|)(?: *)(?:=|:|:=|=>| +|::)(?: *)(?'
     ':"|\\\'|)([a-f0-9]{48}(?![a-f0-9]))(?:"|\\\'|)'),
    ("Mailchimp", 0,
     "[0-9a-z]{32}-us[0-9]{1,2}"),
    ("PypiToken", 0,
     "pypi-AgEIcHlwaS5vcmc[A-Za-z0-9-_]{70,}"),
    ("PypiToken", 0,
     "pypi-AgENdGVzdC5weXBpLm9yZw[A-Za-z0-9-_]{70,}"),
    ("SendGrid", 0,
     "SG\\.[a-zA-Z0-9_-]{22}\\.[a-zA-Z0-9_-]{43}"),
    ("Slack", 2,
     "xox(?:a|b|p|o|s|r)-(?:\\d+-)+[a-z0-9]+"),
    ("Slack", 66,
     "https://hooks\\.slack\\.com/services/T[a-zA-Z0-9_]+/B[a-zA-Z0-9_]+/[a-zA-Z0-9_]+"),
    ("Softlayer", 2,
     '(?:(?<=\\W)|(?<=^))(?:\\[|)(?:"|\\\'|)(?:softlayer|sl)(?:_|-|)(?:api|)(?:_|-|)(?:key'
     '|pwd|password|pass|token)(?:"|\\\'|)(?:\\]|)(?: *)(?:=|:|:=|=>| +|::)(?: *)(?:"|\\\'|'
     ')([a-z0-9]{64})(?:"|\\\'|)'),
    ("Softlayer", 2,
     "(?:http|https)://api.softlayer.com/soap/(?:v3|v3.1)/([a-z0-9]{64})"),
    ("SquareOAuth", 0,
     "sq0csp-[0-9A-Za-z\\\\\\-_]{43}"),
    ("Stripe", 0,
     "(?:r|s)k_live_[0-9a-zA-Z]{24}"),
    ("TelegramBotToken", 0,
     "\\d{8,10}:[0-9A-Za-z_-]{35}"),
    ("TwilioKey", 0,
     "AC[a-z0-9]{32}"),
    ("TwilioKey", 0,
     "SK[a-z0-9]{32}"),
)  # fmt: skip
# Names of values that are secrets, as patterns in lower case.
KEPT_WORDS = (
    "api_?key",
    "auth_?key",
    "service_?key",
    "account_?key",
    "db_?key",
    "database_?key",
    "priv_?key",
    "private_?key",
    "client_?key",
    "db_?pass",
    "database_?pass",
    "key_?pass",
    "password",
    "passwd",
    "pwd",
    "secret",
    "contraseña",
    "contrasena",
)
