"""What a handler may do in AWS: checked where it is declared, a policy where it is deployed.

    aws_permissions=[
        {"actions": ["ssm:PutParameter"],
         "resources": ["arn:{partition}:ssm:{region}:{account}:parameter/live-version"]},
    ]

`{partition}`, `{region}` and `{account}` stand for those of the stack.

In place of the list there may be a function that makes it of the handler's settings. Wildcards are allowed only where
AWS has no exact name to give: see `_WITHOUT_RESOURCE` and `_OPEN_ENDS`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

PLACEHOLDERS: Final = ("partition", "region", "account")

_ACTION = re.compile(r"([a-z0-9-]+):([A-Z][A-Za-z0-9]+)")
_RESOURCE = re.compile(r"arn:[^:*?\s]+:([a-z0-9-]+):[^:*?\s]*:[^:*?\s]*:[^*?\s]+")

# Actions that AWS has no resources for.
_WITHOUT_RESOURCE: Final = frozenset({"ecs:DescribeTaskDefinition", "ecs:RegisterTaskDefinition"})
# Names that are made later: Lambda numbers versions, and builds name objects after them.
_OPEN_ENDS: Final = {
    "lambda:GetFunctionConfiguration": re.compile(r"arn:[^*?]+:function:[A-Za-z0-9_-]+:\*"),
    "s3:GetObject": re.compile(r"arn:[^*?]+:::[^*?/]+/[^*?]*\*[^*?]*"),
}

# Prefixes of IAM actions; AWS offers no interface to list them.
_SERVICES: Final = frozenset(
    """
access-analyzer account account-access acm acm-pca aco-automation agent-registry aidevops aiops airflow
airflow-serverless amplify amplifybackend amplifyuibuilder aoss apigateway app-integrations appconfig
appfabric appflow application-autoscaling application-cost-profiler application-signals
applicationinsights appmesh apprunner appstream appsync aps arc-region-switch arc-zonal-shift artifact
athena auditmanager autoscaling autoscaling-plans aws-marketplace awsssoportal b2bi backup backup-gateway
backup-search batch bcm-dashboards bcm-data-exports bcm-pricing-calculator bcm-recommended-actions bedrock
bedrock-agentcore billing billingconductor braket budgets cases cassandra ce chatbot chime cleanrooms
cleanrooms-ml cloud9 cloudcontrolapi clouddirectory cloudformation cloudfront cloudfront-keyvaluestore
cloudhsm cloudsearch cloudtrail cloudtrail-data cloudwatch codeartifact codebuild codecatalyst codecommit
codeconnections codedeploy codeguru-profiler codeguru-reviewer codeguru-security codepipeline
codestar-connections codestar-notifications cognito-identity cognito-idp cognito-sync comprehend
comprehendmedical compute-optimizer config connect connect-campaigns continuum controlcatalog controltower
cost-optimization-hub cur databrew dataexchange datapipeline datasync datazone dax deadline detective
devicefarm devops-guru directconnect discovery dlm dms docdb-elastic drs ds ds-data dsql dynamodb ebs ec2
ec2-instance-connect ecr ecr-public ecs eks eks-auth elasticache elasticbeanstalk elasticfilesystem
elasticloadbalancing elasticmapreduce elemental-inference emr-containers emr-serverless end-user-messaging
entityresolution es events evs execute-api firehose fis fms forecast frauddetector freetier fsx gamelift
gameliftstreams geo geo-maps geo-places geo-routes glacier globalaccelerator glue grafana greengrass
groundstation guardduty health health-agent healthlake iam identitystore imagebuilder importexport
inspector inspector-scan inspector2 interconnect internetmonitor invoicing iot iot-jobs-data iotdata
iotdeviceadvisor iotfleetwise iotmanagedintegrations iotsitewise iotthingsgraph iottwinmaker iotwireless
ivs ivschat kafka kafkaconnect kendra kendra-ranking kinesis kinesisanalytics kinesisvideo kms
lakeformation lambda launchwizard lex license-manager license-manager-linux-subscriptions
license-manager-user-subscriptions lightsail logs lookoutequipment m2 machinelearning macie2
managedblockchain managedblockchain-query marketplacecommerceanalytics mediaconnect mediaconvert medialive
mediapackage mediapackage-vod mediapackagev2 mediastore mediatailor medical-imaging memorydb mgh mgn
migrationhub-orchestrator migrationhub-strategy mobiletargeting monitoring mpa mq mturk-requester
neptune-db neptune-graph network-firewall network-security-manager networkflowmonitor networkmanager
networkmonitor notifications notifications-contacts nova-act oam observabilityadmin odb omics
organizations osis osm outposts partnercentral partnercentral-account partnercentral-benefits
partnercentral-channel partnercentral-selling payment-cryptography pca-connector-ad pca-connector-scep pcs
personalize pi pipes polly pricing pricingplanmanager profile proton qapps qbusiness quicksight ram rbin
rds rds-data redshift redshift-data redshift-serverless refactor-spaces rekognition repostspace
resiliencehub resource-explorer-2 resource-groups rolesanywhere route53 route53-recovery-cluster
route53-recovery-control-config route53-recovery-readiness route53domains route53globalresolver
route53profiles route53resolver rtbfabric rum s3 s3-object-lambda s3-outposts s3files s3tables s3vectors
sagemaker sagemaker-geospatial savingsplans scheduler schemas scn sdb secretsmanager security-ir
securityagent securityhub securitylake serverlessrepo servicecatalog servicediscovery servicequotas ses
shield signer signin sms-voice snow-device-management snowball sns social-messaging sqs ssm ssm-contacts
ssm-guiconnect ssm-incidents ssm-quicksetup ssm-sap sso sso-oauth states storagegateway sts support
supportapp supportauthz sustainability swf synthetics tax textract thinclient timestream
timestream-influxdb transcribe transfer translate trustedadvisor uxc verifiedpermissions voiceid
vpc-lattice waf waf-regional wafv2 wellarchitected wickr wisdom workdocs workmail workmailmessageflow
workspaces workspaces-instances workspaces-web xray
""".split()  # noqa: SIM905  # a hundred lines shorter than a list
)


def problem_with(permissions: object) -> str | None:
    """What is wrong with declared permissions; None if nothing is.

    Wildcards are refused: what a handler may do is a list that a reviewer can read to its end.
    """
    if isinstance(permissions, str | bytes) or not isinstance(permissions, Sequence):
        return "aws_permissions must be a list of {'actions': […], 'resources': […]}"
    for index, statement in enumerate(permissions):
        where = f"aws_permissions[{index}]"
        if not isinstance(statement, Mapping) or set(statement) != {"actions", "resources"}:
            return f"{where} must have the keys actions and resources"
        for key in ("actions", "resources"):
            if not isinstance(statement[key], list | tuple) or not statement[key]:
                return f"{where}.{key} must be a list of strings, at least one"
        for action in statement["actions"]:
            if problem := _action_problem(action):
                return f"{where}.actions: {problem}"
        if list(statement["resources"]) == ["*"] and set(statement["actions"]) <= _WITHOUT_RESOURCE:
            continue
        for resource in statement["resources"]:
            if problem := _resource_problem(resource, statement["actions"]):
                return f"{where}.resources: {problem}"
        services = {action.partition(":")[0] for action in statement["actions"]}
        for resource in statement["resources"]:
            service = resource.split(":")[2]
            if service not in services:
                return (
                    f"{where}: {resource} is a resource of {service}, but the actions are of "
                    f"{', '.join(sorted(services))}; write one statement for each service"
                )
    return None


def statements(permissions: Sequence[Mapping[str, Any]]) -> list[dict[str, list[str]]]:
    """Checked permissions as plain JSON values."""
    return [{key: list(item[key]) for key in ("actions", "resources")} for item in permissions]


def _action_problem(value: object) -> str | None:
    match = _ACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return f"{value!r} is no permission; write service:Action, without wildcards"
    if match[1] not in _SERVICES:
        close = difflib.get_close_matches(match[1], _SERVICES, 1)
        hint = f"; did you mean {close[0]}:{match[2]}?" if close else ""
        return f"unknown permission {value}: AWS has no service {match[1]}{hint}"
    return None


def _resource_problem(value: object, actions: Sequence[str]) -> str | None:
    if not isinstance(value, str):
        return f"{value!r} is no ARN"
    names = dict.fromkeys(PLACEHOLDERS, "x")
    try:
        filled = value.format_map(names)
    except (KeyError, ValueError, IndexError, AttributeError):
        return f"{value!r} has an unknown placeholder; known are {', '.join(PLACEHOLDERS)}"
    open_end = all(action in _OPEN_ENDS and _OPEN_ENDS[action].fullmatch(filled) for action in actions)
    if ("*" in value or "?" in value) and not open_end:
        return f"{value!r} has a wildcard; name the one resource"
    if not _RESOURCE.fullmatch(filled.replace("*", "x") if open_end else filled):
        return f"{value!r} is no ARN; write arn:{{partition}}:service:{{region}}:{{account}}:resource"
    return None
